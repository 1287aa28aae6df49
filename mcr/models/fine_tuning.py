"""What a policy's training needs to know of the encoders in it: parameter groups and counts.

Freezing itself is the encoder's own matter, `models.encoder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mcr.errors import UserError
from mcr.models.encoder import Encoder


def param_groups(
    policy: nn.Module, lr: float, backbone_lr_scale: float = 0.1
) -> list[dict[str, Any]]:
    """Two groups for an optimiser: the policy at `lr`, the encoders in it at `lr * scale`.

    All of the encoders' parameters are in the second, frozen ones too: they get no gradient, so the
    optimiser leaves them alone, and `encoder.unfreeze` later needs no new optimiser.
    Raises UserError if there is no Encoder in `policy`.
    """
    encoders = [module for module in policy.modules() if isinstance(module, Encoder)]
    if not encoders:
        raise UserError("there is no Encoder in this policy: pass the module that holds it")
    theirs = {id(parameter) for encoder in encoders for parameter in encoder.parameters()}
    parameters = list(policy.parameters())
    groups = {
        "policy": ([p for p in parameters if id(p) not in theirs], lr),
        "encoder": ([p for p in parameters if id(p) in theirs], lr * backbone_lr_scale),
    }
    return [
        {"name": name, "params": params, "lr": rate}
        for name, (params, rate) in groups.items()
        if params
    ]


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of a module's parameters; printed, a sentence."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / max(self.total, 1)
        return f"{self.trainable:,} / {self.total:,} parameters trainable ({share:.1%})"


def count_parameters(module: nn.Module) -> ParameterCount:
    """How many of them learn; as text "197,888 / 11,374,400 parameters trainable (1.7%)"."""
    parameters = list(module.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return ParameterCount(trainable, sum(parameter.numel() for parameter in parameters))
