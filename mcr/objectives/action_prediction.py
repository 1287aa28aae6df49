"""Action prediction: regression of the robot's action from the embedding of a single image.

The actor head makes the embedding hold what matters for control. It is not a policy and is
discarded after pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcr.data.batch import ALL_FRAMES, Batch, Dimensions
from mcr.runs.gather import gather_rows
from mcr.runs.ranges import check_fields, whole


@dataclass
class ActionPredictionConfig:
    """Sizes of the actor head.

    feature_dim: width of the bottleneck between the embedding and the actor
    hidden_dim:  width of the actor's two hidden layers
    """

    feature_dim: Annotated[int, whole(1, note="the paper's is 50")] = 50
    hidden_dim: Annotated[int, whole(1, note="the paper's is 512")] = 512

    def __post_init__(self) -> None:
        check_fields(self, "objectives.action_prediction.")


class ActionPrediction(nn.Module):
    """MCR (arXiv 2410.22325), "action prediction"; pi is the bottleneck and the actor.

        L = mean over all five frames and action dimensions of  (pi(z_t) - a_t)^2

    a_t may be a chunk of the actions from t on. The paper's is one action.

    The loss is in the squared units of `batch.actions`. If actions are standardised, predicting
    their mean gives a loss of 1. Raw poses mix metres with radians.

    Metrics: r2 = 1 - L / L0, where L0 is the loss of predicting the batch's mean action: 1 is
    perfect, 0 equals that constant prediction, and negative values are worse. It needs batches of
    some tens of clips, because the mean of a small batch fits the batch too well.
    """

    frames = ALL_FRAMES

    def __init__(self, config: ActionPredictionConfig, embed_dim: int, dims: Dimensions) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(embed_dim, config.feature_dim), nn.LayerNorm(config.feature_dim), nn.Tanh()
        )
        self.actor = nn.Sequential(
            nn.Linear(config.feature_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, dims.chunk * dims.action),
        )

    def forward(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """embeddings [B, F, D] -> (loss, metrics), float32 scalars."""
        with torch.autocast(embeddings.device.type, enabled=False):
            actions = batch.actions.float()
            loss = F.mse_loss(self.actor(self.trunk(embeddings.float())), actions)
            # The variance is that of the global batch, so that the mean of r2 over processes is
            # the r2 of one process.
            everyones, _ = gather_rows(actions)
            return loss, {"r2": explained_variance(loss.detach(), everyones)}


def explained_variance(error: Tensor, targets: Tensor) -> Tensor:
    """R^2 of a mean squared error over targets [..., A]; -inf or NaN if targets are constant."""
    blind = targets.flatten(0, -2).var(dim=0, correction=0).mean()
    return 1 - error / blind
