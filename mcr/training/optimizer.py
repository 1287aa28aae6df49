"""The optimiser of a run: its options, the learning rate of each step, and its parameter groups.

`engine.py` builds it and steps it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from mcr.models.blocks import layers_of
from mcr.runs.ranges import check_fields, choice, number, whole

KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
SHAPES = ("linear", "cosine")


@dataclass
class OptimizerConfig:
    """Adam. Paper: a constant rate of 1e-4.

    kind:              "adam", or "adamw": weight decay apart from the gradient, and only of kernels
                       and matrices, not of biases, norms, tokens' scales and other vectors
    warmup_steps:      number of steps at the beginning over which the rate rises linearly, so that
                       the last of them has the full rate; 0 = full from the beginning
    decay_steps:       number of steps at the end over which the rate falls to 0; 0 = constant. In a
                       run that has fewer steps it falls from the beginning
    decay:             how it falls: "linear", or "cosine" (half a period)
    backbone_lr_scale: the encoder learns at this times the rate of the heads
    layer_decay:       each layer of the encoder (stem, each block, last norm) learns at this times
                       the rate of the layer after it
    clip_norm:         gradients with a larger norm, over all parameters, are scaled to this one;
                       0 = no limit. The log shows the norm before
    """

    lr: Annotated[float, number(least=0)] = 1e-4
    weight_decay: Annotated[float, number(least=0)] = 0.0
    decay_steps: Annotated[int, whole(0)] = 0
    kind: Annotated[str, choice(KINDS)] = "adam"
    warmup_steps: Annotated[int, whole(0)] = 0
    decay: Annotated[str, choice(SHAPES)] = "linear"
    backbone_lr_scale: Annotated[float, number(above=0, note="1 is the rate of the heads")] = 1.0
    layer_decay: Annotated[
        float, number(above=0, most=1, note="1 is the same rate for all layers")
    ] = 1.0
    clip_norm: Annotated[float, number(least=0)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")

    def rate(self, step: int, num_steps: int) -> float:
        """Return the learning rate of a step, 0 .. num_steps - 1.

        Where warm-up and decay overlap, their factors multiply.
        """
        rate = self.lr
        if step + 1 < self.warmup_steps:
            rate = rate * (step + 1) / self.warmup_steps
        left, decay_steps = num_steps - step, min(self.decay_steps, num_steps)
        if left >= decay_steps:
            return rate
        if self.decay == "cosine":
            return rate * (1 - math.cos(math.pi * left / decay_steps)) / 2
        return rate * left / decay_steps


@dataclass(frozen=True)
class RateGroup:
    """Parameters that share a learning rate and a weight decay.

    scale: their learning rate, as a multiple of the run's
    """

    scale: float
    weight_decay: float
    parameters: list[nn.Parameter]


def rate_groups(model: nn.Module, encoder: nn.Module, config: OptimizerConfig) -> list[RateGroup]:
    """Group the parameters of `model` that learn, in their order; `encoder` is a part of it.

    With the default options there is one group.
    """
    scales = _scales(encoder, config)
    groups: dict[tuple[float, float], RateGroup] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_exempt = config.kind == "adamw" and parameter.ndim < 2
        decay = 0.0 if is_exempt else config.weight_decay
        key = scales.get(parameter, 1.0), decay
        groups.setdefault(key, RateGroup(*key, [])).parameters.append(parameter)
    return list(groups.values())


def _scales(encoder: nn.Module, config: OptimizerConfig) -> dict[nn.Parameter, float]:
    """The multiple of the run's rate of each parameter of the encoder."""
    parameters = dict(encoder.named_parameters())
    return {
        parameters[name]: config.backbone_lr_scale * config.layer_decay**depth
        for depth, layer in enumerate(reversed(layers_of(encoder)))
        for name in layer
    }


def build_optimizer(groups: list[RateGroup], config: OptimizerConfig) -> Any:
    """Return the optimiser of the groups; its parameter groups are in their order."""
    settings = [
        {
            "params": group.parameters,
            "lr": group.scale * config.lr,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    kind: Any = KINDS[config.kind]
    return kind(settings, lr=config.lr, fused=True)


def step_unless(broken: Tensor, optimizer: Any) -> None:
    """Step an optimiser of `build_optimizer`, which changes nothing if `broken` is 1 and not 0.

    broken: float32 scalar on the device of the parameters. The host does not read it, so a GPU
            need not wait.

    Neither parameters nor moments nor the count of steps change. This rests on the attribute
    `found_inf`, by which torch's GradScaler tells a fused optimiser that a gradient overflowed.
    torch does not document it for others; `test_a_broken_step_changes_nothing` fails if a version
    no longer honours it. The body of this function is then to be replaced by::

        if not broken:
            optimizer.step()

    which does the same, but lets the host wait for the device in every step.
    """
    optimizer.found_inf = broken
    optimizer.step()
