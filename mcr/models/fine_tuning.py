"""Parameter groups and parameter counts of a policy that contains encoders.

Which parameters learn is decided by `Encoder.unfreeze` in `models.encoder`.
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
    """Return parameter groups for an optimiser: the policy's and its encoders'.

    lr:                learning rate of untrained encoders, and of all that is outside of encoders
    backbone_lr_scale: the learning rate of other encoders is `lr` times this

    The encoders' groups also hold their frozen parameters. Those get no gradient, so the optimiser
    does not change them, and a later `encoder.unfreeze` needs no new optimiser.
    Raises UserError if `policy` contains no Encoder.
    """
    encoders = [module for module in policy.modules() if isinstance(module, Encoder)]
    if not encoders:
        raise UserError("there is no Encoder in this policy: pass the module that holds it")
    rates = {
        parameter: lr if encoder.is_untrained else lr * backbone_lr_scale
        for encoder in encoders
        for parameter in encoder.parameters()
    }
    parameters = list(policy.parameters())
    groups = [{"name": "policy", "params": [p for p in parameters if p not in rates], "lr": lr}]
    for rate in dict.fromkeys(rates.values()):
        its = [p for p in parameters if rates.get(p) == rate]
        groups.append({"name": "encoder", "params": its, "lr": rate})
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a module has, and how many of them learn; prints as a sentence."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / max(self.total, 1)
        return f"{self.trainable:,} / {self.total:,} parameters trainable ({share:.1%})"


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count parameters; prints as "197,888 / 11,374,400 parameters trainable (1.7%)"."""
    parameters = list(module.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return ParameterCount(trainable, sum(parameter.numel() for parameter in parameters))
