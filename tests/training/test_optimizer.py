"""Learning rates, parameter groups, clipping and the average of weights, in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mcr.data.batch import UNNAMED
from mcr.errors import UserError
from mcr.models.backbones import build_backbone
from mcr.training.optimizer import (
    KINDS,
    OptimizerConfig,
    RateGroup,
    build_optimizer,
    rate_groups,
    step_unless,
)
from mcr.training.weight_average import WeightAverage
from tests.training.one_step import ALONE, CPU, make_engine, whole_batch


def rates(num_steps, **options):
    config = OptimizerConfig(lr=0.5, **options)
    return [config.rate(step, num_steps) for step in range(num_steps)]


def test_the_rate_rises_linearly_to_the_full_one():
    assert rates(6, warmup_steps=4) == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert rates(3, warmup_steps=1) == rates(3) == [0.5] * 3


def test_the_rate_falls_by_half_a_cosine():
    half = math.sqrt(0.5)
    expected = [0.5, 0.5, 0.5, 0.25 * (1 + half), 0.25, 0.25 * (1 - half)]
    assert rates(6, decay_steps=4, decay="cosine") == pytest.approx(expected)


def test_in_a_run_that_is_shorter_than_the_decay_the_rate_falls_from_the_beginning():
    assert rates(4, decay_steps=100) == [0.5, 0.375, 0.25, 0.125]


def test_warm_up_and_decay_multiply_where_they_overlap():
    assert rates(4, warmup_steps=2, decay_steps=4) == [0.25, 0.375, 0.25, 0.125]


# ---- steps that are not finite


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_broken_step_changes_nothing(kind, device):
    """It pins what torch does not document; see `step_unless`."""
    layer, broken = nn.Linear(3, 2).to(device), torch.zeros((), device=device)
    groups = [RateGroup(1.0, 0.1, list(layer.parameters()))]
    optimizer = build_optimizer(groups, OptimizerConfig(kind=kind, weight_decay=0.1))

    def state():
        moments = [tensor for of_one in optimizer.state.values() for tensor in of_one.values()]
        return [tensor.clone() for tensor in (*layer.parameters(), *moments)]

    def changed_by_a_step(gradient: float) -> list[bool]:
        before = state()
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        step_unless(broken, optimizer)
        return [not torch.equal(a, b) for a, b in zip(before, state(), strict=True)]

    step_unless(broken, optimizer)  # without gradients
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    step_unless(broken, optimizer)  # makes the moments
    assert len(state()) == 2 + 2 * 3 and all(changed_by_a_step(0.5))
    broken.fill_(1)
    for gradient in (0.5, math.nan, math.inf):
        assert not any(changed_by_a_step(gradient))
    broken.fill_(0)
    assert all(changed_by_a_step(0.5))


# ---- groups


class Small(nn.Module):
    def __init__(self, backbone="resnet18"):
        super().__init__()
        self.encoder = build_backbone(backbone, 32)
        self.head = nn.Linear(3, 2)


def groups(model, **options):
    return rate_groups(model, model.encoder, OptimizerConfig(**options))


def test_there_is_one_group_by_default():
    model = Small()
    (group,) = groups(model, weight_decay=0.1)
    assert (group.scale, group.weight_decay) == (1.0, 0.1)
    assert all(a is b for a, b in zip(group.parameters, model.parameters(), strict=True))


def test_the_encoder_learns_at_a_rate_of_its_own():
    model = Small()
    encoder, head = groups(model, backbone_lr_scale=0.25)
    assert (encoder.scale, head.scale) == (0.25, 1.0)
    assert {*map(id, head.parameters)} == {*map(id, model.head.parameters())}


@pytest.mark.parametrize(
    ("backbone", "first", "block", "last", "num_blocks"),
    [
        ("resnet18", "conv1.weight", "layer3.0.conv1.weight", "layer4.1.bn2.bias", 8),
        (
            "vit_ti_16",
            "class_token",
            "encoder.layers.encoder_layer_4.ln_1.weight",
            "encoder.ln.bias",
            12,
        ),
    ],
)
def test_each_layer_learns_at_a_rate_of_its_own(backbone, first, block, last, num_blocks):
    model = Small(backbone)
    scale = {
        id(p): group.scale
        for group in groups(model, backbone_lr_scale=0.5, layer_decay=0.5)
        for p in group.parameters
    }
    named = dict(model.encoder.named_parameters())
    has_norm = backbone.startswith("vit")  # after the last block
    assert scale[id(named[last])] == 0.5
    assert scale[id(named[first])] == 0.5 * 0.5 ** (num_blocks + has_norm)
    assert scale[id(named[block])] == 0.5 * 0.5 ** (num_blocks + has_norm - 5)  # the fifth block
    assert scale[id(model.head.weight)] == 1.0


def test_adamw_decays_kernels_and_matrices_only():
    model = Small()
    decayed, exempt = groups(model, kind="adamw", weight_decay=0.1)
    assert (decayed.weight_decay, exempt.weight_decay) == (0.1, 0.0)
    assert {p.ndim for p in decayed.parameters} == {2, 4}
    assert {p.ndim for p in exempt.parameters} == {1}


@pytest.mark.parametrize(("kind", "expected"), [("adam", 0.9), ("adamw", 0.85)])
def test_the_first_step_of_each_kind(kind, expected):
    """Adam's first step is lr * sign(gradient); AdamW's shrinks the weight by lr * decay, too."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, kind=kind)
    optimizer = build_optimizer(rate_groups(layer, nn.Module(), config), config)
    layer.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "optimizer.warmup_steps=-1 must be a whole number of at least 0"),
        ({"decay_steps": -1}, "optimizer.decay_steps=-1"),
        ({"clip_norm": -0.5}, "optimizer.clip_norm=-0.5"),
        ({"kind": "adamx"}, "did you mean 'adam"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"backbone_lr_scale": 0.0}, "backbone_lr_scale=0.0 must be a finite number above 0"),
        ({"layer_decay": 1.5}, "layer_decay=1.5 must be a finite number above 0 and at most 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**options)


# ---- the engine


def gradients(engine):
    return torch.cat([p.grad.flatten() for p in engine.model.parameters()])


def engine_with(**options):
    return make_engine(ALONE, optimizer=OptimizerConfig(lr=1e-3, **options))


def test_a_rate_of_the_encoder_reaches_its_group():
    engine = engine_with(backbone_lr_scale=0.1)
    engine.set_rate(0.5)
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.05, 0.5]


def test_long_gradients_are_clipped_and_short_ones_are_not():
    plain = engine_with()
    torch.manual_seed(1)
    norm = plain.step([{UNNAMED: whole_batch()}]).metrics["gradient_norm"].item()
    for limit, expected in ((norm / 4, norm / 4), (norm * 4, norm)):
        engine = engine_with(clip_norm=limit)
        torch.manual_seed(1)
        step = engine.step([{UNNAMED: whole_batch()}])
        assert step.metrics["gradient_norm"].item() == pytest.approx(norm, rel=1e-5)
        assert gradients(engine).norm().item() == pytest.approx(expected, rel=1e-5)
        direction = torch.nn.functional.cosine_similarity(
            gradients(engine), gradients(plain), dim=0
        )
        assert direction.item() == pytest.approx(1, abs=1e-5)


def test_another_grouping_of_parameters_is_not_restored():
    state = engine_with().optimizer.state_dict()
    with pytest.raises(UserError, match=r"has 1 groups of parameters, this one 2"):
        engine_with(backbone_lr_scale=0.1).load_optimizer(state)


# ---- the average


def test_the_average_is_the_closed_form():
    """a_n = d^n w_0 + (1 - d) sum_i d^(n - i) w_i, for weights and running statistics alike."""
    network = nn.BatchNorm2d(1)
    average = WeightAverage(network, decay=0.75)
    values = [1.0, 3.0, -2.0, 5.0]  # of the weight, which begins as 1
    expected = values[0]
    for count, value in enumerate(values[1:], start=1):
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_var.fill_(value)
            network.num_batches_tracked.fill_(count)
        average.update()
        expected = 0.75 * expected + 0.25 * value
    tensors = average.state_dict()
    assert tensors["weight"].item() == pytest.approx(expected)
    assert tensors["running_var"].item() == pytest.approx(expected)
    assert tensors["num_batches_tracked"].item() == 3
    assert network.weight.item() == 5.0


def test_the_engine_averages_after_each_step():
    engine = make_engine(ALONE, ema=0.5, precision="fp32")
    name = "conv1.weight"
    before = engine.model.encoder.conv1.weight.detach().clone()
    engine.step([{UNNAMED: whole_batch()}])
    after = engine.model.encoder.conv1.weight.detach()
    torch.testing.assert_close(engine.average.state_dict()[name], (before + after) / 2)
    assert engine.average.state_dict()[name].device == CPU
