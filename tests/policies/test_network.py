"""The network behind observations: it equals plain layers, with torch's and with grouped ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mcr.policies.ensemble import EnsembleConfig, EnsembleNetwork
from mcr.policies.heads import HEADS
from mcr.policies.network import ActionNetwork, PolicyConfig, Standardise

B, WIDTH, A, C = 7, 5, 2, 3
VECTORS, TARGETS = torch.randn(B, WIDTH), torch.randn(B, C * A)


def test_standardised_columns():
    values = torch.tensor([[1.0, 10.0, 3.0], [3.0, 30.0, 3.0]])
    standardise = Standardise(3)
    assert torch.equal(standardise(values), values)
    standardise.fit(values)
    assert standardise(values).tolist() == [[-1, -1, 0], [1, 1, 0]]  # a constant is only shifted
    assert torch.equal(standardise.inverse(standardise(values)), values)


def test_loss_and_actions_are_those_of_plain_layers():
    network = ActionNetwork(PolicyConfig(chunk=C, hidden=[4]), WIDTH, A)
    network.standardise.fit(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))  # means 1, 20; std 1, 10
    first, last = network.layers
    output = last(torch.relu(first(VECTORS)))
    scaled = (TARGETS.view(B, C, A) - torch.tensor([1.0, 20.0])) / torch.tensor([1.0, 10.0])
    losses = (output.view(B, C, A) - scaled).square().mean(dim=(1, 2))
    torch.testing.assert_close(network.loss(VECTORS, TARGETS), losses)
    actions = output.view(B, C, A) * torch.tensor([1.0, 10.0]) + torch.tensor([1.0, 20.0])
    torch.testing.assert_close(network.actions(VECTORS), actions)


@pytest.mark.parametrize("head", HEADS)
def test_grouped_layers_equal_separate_networks(head):
    options = {"head": head, "chunk": C, "hidden": [6, 4]}
    config = EnsembleConfig(**options, feature_norm="none")
    ensemble = EnsembleNetwork(config, [WIDTH, 0, A], seeds=[3, 8])
    inputs = VECTORS.expand(2, B, WIDTH), torch.zeros(2, B, 0)
    losses = ensemble.loss(*inputs, TARGETS.expand(2, B, C * A))
    for number in range(2):
        alone = ActionNetwork(PolicyConfig(**options), WIDTH, A)
        for linear, grouped in zip(alone.layers, ensemble.network.layers, strict=True):
            assert isinstance(linear, nn.Linear)
            linear.weight.data = grouped.weight[number].T.clone()
            linear.bias.data = grouped.bias[number, 0].clone()
        torch.testing.assert_close(alone.loss(VECTORS, TARGETS).mean(), losses[number])
        torch.testing.assert_close(alone.actions(VECTORS), ensemble.actions(*inputs)[number])
