"""Parameter counts and groups, gradual unfreezing, gradient checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mcr
from mcr.errors import UserError
from mcr.models.fine_tuning import ParameterCount

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder(released):
    return mcr.load_model(released)


def policy_on(encoder):
    return nn.ModuleDict({"encoder": encoder, "head": nn.Linear(encoder.embed_dim, 7)})


def step(policy, optimizer):
    """Take a step of descent; return the names of the parameters that it changed."""
    before = copy.deepcopy(policy.state_dict())
    optimizer.zero_grad()
    policy["head"](policy["encoder"](IMAGES)).square().sum().backward()
    optimizer.step()
    after = policy.state_dict()
    return {name for name in after if not torch.equal(after[name], before[name])}


def test_counts_read_as_a_sentence():
    count = ParameterCount(197_888, 11_374_400)
    assert str(count) == "197,888 / 11,374,400 parameters trainable (1.7%)"
    assert str(ParameterCount(0, 0)) == "0 / 0 parameters trainable (0.0%)"


def test_counts_of_a_frozen_encoder_with_a_head(encoder):
    head = nn.Sequential(nn.Linear(512, 256), nn.LeakyReLU(), nn.Linear(256, 256))
    policy = nn.Sequential(encoder, head)
    trainable = 512 * 256 + 256 + 256 * 256 + 256
    assert mcr.count_parameters(policy) == ParameterCount(trainable, 11_176_512 + trainable)
    assert str(mcr.count_parameters(encoder)) == "0 / 11,176,512 parameters trainable (0.0%)"


def test_param_groups(encoder):
    policy = policy_on(encoder)
    encoder.unfreeze("layer4.1")
    groups = mcr.param_groups(policy, lr=1e-3, backbone_lr_scale=0.01)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("policy", 1e-3),
        ("encoder", pytest.approx(1e-5)),
    ]
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(policy.parameters()))
    with pytest.raises(UserError, match="no Encoder in this policy"):
        mcr.param_groups(policy["head"], lr=1e-3)


def test_gradual_unfreezing_needs_no_new_optimiser(encoder):
    policy = policy_on(encoder)
    optimizer = torch.optim.AdamW(mcr.param_groups(policy, lr=1e-3), weight_decay=0.1)
    head = {"head.weight", "head.bias"}
    assert step(policy, optimizer) == head
    for depth, stage in ((1, "layer4"), (2, "layer3")):
        encoder.unfreeze(encoder.stages[:depth])
        changed = step(policy, optimizer)
        assert {name.split(".")[1] for name in changed - head} == set(encoder.stages[:depth])
        assert stage in encoder.stages
    encoder.freeze()
    assert (
        step(policy, optimizer) == head
    )  # weight decay and momentum do not change frozen parameters


def test_stages_go_from_output_to_input_and_cover_everything(encoder, make_network, save):
    vit = mcr.load_model(save(make_network("vit_ti_16").state_dict()))
    for each, first, last in (
        (encoder, "layer4", "conv1"),
        (vit, "encoder.ln", "conv_proj"),
    ):
        assert (each.stages[0], each.stages[-1]) == (first, last)
        each.unfreeze(each.stages)
        assert all(parameter.requires_grad for parameter in each.parameters())
    assert vit.stages[1] == "encoder.layers.encoder_layer_11"


def test_unfreezing_changes_nothing_if_a_layer_is_unknown(encoder):
    with pytest.raises(UserError, match="trainable='layer5' has no parameters"):
        encoder.unfreeze(["layer4", "layer5"])
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder(IMAGES)


def test_unfreezing_by_other_means_is_refused(encoder):
    policy = policy_on(encoder)
    policy.requires_grad_(True)
    with pytest.raises(
        UserError, match=r"60 frozen .*\(conv1.weight, .*encoder.unfreeze\(layers\)"
    ):
        encoder(IMAGES)
    encoder.freeze()
    encoder.unfreeze("layer4")
    encoder(IMAGES)
    policy.requires_grad_(False)  # freezing by other means is allowed
    encoder(IMAGES)
    encoder.requires_grad_(True)  # the encoder's own method
    assert encoder(IMAGES).requires_grad
    encoder.requires_grad_(False)
    assert not encoder(IMAGES).requires_grad


def saved_bytes(encoder):
    """Return the number of values kept for the backward pass, and the gradient."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    encoder.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encoder(IMAGES)
        total = sum(kept.values())
    features.square().sum().backward()
    return total, {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["resnet18", "vit_ti_16"])
def test_checkpointing_keeps_less_and_changes_nothing(name, make_network, save):
    encoder = mcr.load_model(save(make_network(name).state_dict()))
    encoder.requires_grad_(True)
    plain, expected = saved_bytes(encoder)
    encoder.set_grad_checkpointing()
    fewer, gradients = saved_bytes(encoder)
    assert fewer < 0.7 * plain
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name])
