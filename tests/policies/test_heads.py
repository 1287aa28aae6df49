"""Heads: losses equal a naive float64 computation, and actions are the most likely ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mcr.errors import UserError
from mcr.policies.heads import HEADS, action_chunks, build_head

A, MODES = 3, 4


def softplus(x):
    return math.log1p(math.exp(x)) + 0.01  # the least deviation


def log_density(mean, scale, target):
    """Sum over an action's numbers of a Gaussian's log-density, float64."""
    total = 0.0
    for m, s, t in zip(mean, map(softplus, scale), target, strict=True):
        total += -0.5 * ((t - m) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)
    return total


def naive_loss(name, output, target):
    if name == "mlp":
        return sum((o - t) ** 2 for o, t in zip(output, target, strict=True)) / A
    if name == "gaussian":
        return -log_density(output[:A], output[A:], target)
    logits, rest = output[:MODES], np.reshape(output[MODES:], (MODES, 2 * A))
    weights = np.exp(logits) / np.exp(logits).sum()
    densities = [math.exp(log_density(row[:A], row[A:], target)) for row in rest]
    return -math.log(sum(w * d for w, d in zip(weights, densities, strict=True)))


@pytest.mark.parametrize("name", HEADS)
def test_loss_equals_a_naive_computation(name):
    head = build_head(name, A, MODES)
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 5, head.width, generator=generator)
    target = torch.randn(2, 5, A, generator=generator)
    loss = head.loss(output, target)
    for place in np.ndindex(2, 5):
        expected = naive_loss(name, output[place].double().numpy(), target[place].double().numpy())
        assert loss[place].item() == pytest.approx(expected, rel=1e-5)


def test_actions():
    output = torch.tensor([[1.0, 2.0, 3.0, 9.0, 9.0, 9.0]])
    assert build_head("mlp", 6, 1).action(output).tolist() == output.tolist()
    assert build_head("gaussian", 3, 1).action(output).tolist() == [[1, 2, 3]]
    mixture = build_head("gmm", 1, 2)  # two logits, then mean and deviation of each mode
    likeliest = mixture.action(torch.tensor([[0.0, 1.0, 5.0, 0.0, 7.0, 0.0], [1, 0, 5, 0, 7, 0]]))
    assert likeliest.tolist() == [[7], [5]]


@pytest.mark.parametrize("name", HEADS)
def test_descent_finds_the_action(name):
    head, target = build_head(name, A, MODES), torch.tensor([[0.5, -1.0, 0.0]])
    output = torch.nn.Parameter(torch.randn(1, head.width, generator=torch.manual_seed(0)))
    optimizer = torch.optim.Adam([output], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(output, target).mean().backward()
        optimizer.step()
    assert torch.allclose(head.action(output), target, atol=0.05)


def test_a_mixture_chooses_one_of_two_actions():
    """Of two equally frequent actions it returns one, not their mean."""
    head, target = build_head("gmm", 1, 2), torch.tensor([[1.0], [-1.0]] * 8)
    output = torch.nn.Parameter(torch.tensor([0.0, 0.1, 0.5, 0.0, -0.5, 0.0]))
    optimizer = torch.optim.Adam([output], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(output.expand(16, -1), target).mean().backward()
        optimizer.step()
    assert abs(abs(head.action(output).item()) - 1) < 0.05


def test_gradients_are_finite_far_from_the_target():
    for name in HEADS:
        head = build_head(name, A, MODES)
        for distance in (0.1, 1.0, 100.0, 1000.0):
            output = torch.full((1, head.width), -20.0, requires_grad=True)
            loss = head.loss(output, torch.full((1, A), distance))
            loss.sum().backward()
            assert loss.isfinite().all() and output.grad.isfinite().all()


def test_chunks_end_with_the_episode():
    actions = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    chunks = action_chunks(actions, [3, 2], 3).reshape(5, 3, 2)[..., 0] / 2
    assert chunks.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]
    assert action_chunks(actions, [3, 2], 1).tolist() == actions.tolist()


def test_bad_input():
    with pytest.raises(UserError, match="head='gm' is unknown; did you mean 'gmm'"):
        build_head("gm", A, 1)
    with pytest.raises(UserError, match="modes=0"):
        build_head("gmm", A, 0)
    with pytest.raises(UserError, match="episodes have 4 steps in all, but 5 actions"):
        action_chunks(np.zeros((5, 2)), [4], 2)
    with pytest.raises(UserError, match="chunk=0"):
        action_chunks(np.zeros((5, 2)), [5], 0)
