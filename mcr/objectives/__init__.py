"""The pre-training objectives: their names, their configs, and how to build them.

Each objective has a file with its equation, config and head. A new objective is a new file, a line
in `OBJECTIVES` and a line in `ObjectivesConfig`. The pretrainer calls `build_objectives` and sums
the weighted losses. Nothing here depends on the encoder or the optimiser.

An objective is built as `Objective(config, embed_dim, dims)`. It maps embeddings [B, F, D] and a
Batch to (loss, metrics), all float32 scalars, also under autocast. Metrics have no gradient. Where
there is a teacher, the batch is a TaughtBatch. `Objective.frames` names the frames of a clip whose
embeddings it reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mcr.data.batch import Dimensions
from mcr.errors import UserError, require_choice
from mcr.objectives.action_prediction import ActionPrediction, ActionPredictionConfig
from mcr.objectives.distillation import Distillation, DistillationConfig
from mcr.objectives.dynamics_alignment import DynamicsAlignment, DynamicsAlignmentConfig
from mcr.objectives.state_contrast import StateContrast, StateContrastConfig
from mcr.objectives.time_contrastive import TimeContrastive, TimeContrastiveConfig

OBJECTIVES: dict[str, tuple[type[Any], type[Any]]] = {
    "dynamics_alignment": (DynamicsAlignmentConfig, DynamicsAlignment),
    "action_prediction": (ActionPredictionConfig, ActionPrediction),
    "time_contrastive": (TimeContrastiveConfig, TimeContrastive),
    "state_contrast": (StateContrastConfig, StateContrast),
    "distillation": (DistillationConfig, Distillation),
}
OFF_BY_DEFAULT = {"state_contrast", "distillation"}  # loss_weights may leave these out


@dataclass
class ObjectivesConfig:
    """One field per name in `OBJECTIVES`.

    The defaults are the `mcr` recipe's; the `paper` recipe sets form=epsilon for both contrasts
    and time_contrastive.negatives=permutation.
    """

    dynamics_alignment: DynamicsAlignmentConfig = field(default_factory=DynamicsAlignmentConfig)
    action_prediction: ActionPredictionConfig = field(default_factory=ActionPredictionConfig)
    time_contrastive: TimeContrastiveConfig = field(default_factory=TimeContrastiveConfig)
    state_contrast: StateContrastConfig = field(default_factory=StateContrastConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)


def build_objectives(
    config: ObjectivesConfig, loss_weights: dict[str, float], embed_dim: int, dims: Dimensions
) -> nn.ModuleDict:
    """Build the objectives whose weight is above 0, by name, in the order of `OBJECTIVES`.

    Raises UserError if the names in `loss_weights` are not those of `OBJECTIVES`, of which only
    those that are off by default may be missing, if a weight is negative or not finite, or if all
    weights are 0.
    """
    check_weights(loss_weights)
    return nn.ModuleDict(
        {
            name: objective(getattr(config, name), embed_dim, dims)
            for name, (_, objective) in OBJECTIVES.items()
            if loss_weights.get(name, 0) > 0
        }
    )


def frames_read(loss_weights: dict[str, float]) -> tuple[int, ...]:
    """Return which of the five frames of a clip the objectives with a weight above 0 read."""
    active = [OBJECTIVES[name][1] for name, weight in loss_weights.items() if weight > 0]
    return tuple(sorted({frame for objective in active for frame in objective.frames}))


def check_weights(loss_weights: dict[str, float]) -> None:
    """Raise UserError for weights that `build_objectives` refuses."""
    for name, weight in loss_weights.items():
        require_choice("name in loss_weights", name, OBJECTIVES)
        if not 0 <= weight < math.inf:
            raise UserError(f"loss_weights.{name}={weight} must be finite and not negative")
    missing = [name for name in OBJECTIVES if name not in {*loss_weights} | OFF_BY_DEFAULT]
    if missing:
        raise UserError(f"loss_weights lacks {', '.join(missing)}; a weight of 0 turns one off")
    if not any(loss_weights.values()):
        raise UserError("all loss_weights are 0: nothing to train; set at least one above 0")
