"""Dynamics alignment: a contrast between an image and the robot's motion around its step.

The embedding of an image is pulled towards a projection of the states and actions around the same
step, and pushed away from those of other steps. The encoder must therefore see in a picture what
the robot is doing. The projection is discarded after pre-training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from mcr.data.batch import EARLY, LATE, Batch, Dimensions
from mcr.objectives.contrast import (
    ContrastConfig,
    compared,
    contrastive_loss,
    contrastive_metrics,
    gather_candidates,
    pairwise_similarity,
    positives_first,
    similarity,
)
from mcr.runs.ranges import check_fields, choice, whole

_LEAST_TEMPERATURE = 0.01  # as in CLIP


@dataclass
class DynamicsAlignmentConfig(ContrastConfig):
    """The negatives of an image, and the size of the projection.

    negatives:  "pair" = the other window of the same clip (the paper); "batch" = also both windows
                of all other clips, in both directions between images and dynamics
    hidden_dim: width of the projection's hidden layer
    learn_temperature: learn the temperature, from `temperature` on (CLIP, arXiv 2103.00020); it
                does not fall below 0.01
    """

    negatives: Annotated[str, choice(("pair", "batch"))] = "pair"
    hidden_dim: Annotated[int, whole(1, note="the paper's is 1024")] = 1024
    learn_temperature: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "objectives.dynamics_alignment.")


class DynamicsAlignment(nn.Module):
    """MCR (arXiv 2410.22325), "dynamics alignment"; S is a similarity, H a two-layer projection.

        d_t = (s, a, s, a, ..., s) around step t          t, k = EARLY, LATE and LATE, EARLY
        L = mean over t of  -log( e^S(z_t, H(d_t)) / (e^S(z_t, H(d_t)) + e^S(z_t, H(d_k))) )

    With "batch", the denominator is a sum over both windows of all clips, and L is the mean of this
    loss and of the same loss with images and dynamics exchanged.

    Metrics: accuracy and chance (own window against the other one of the same clip, for either
    choice of negatives; chance is 0.5). With "batch" also batch_accuracy and batch_chance (own
    window among those of all clips, in both directions). With a learned temperature also the
    temperature.
    """

    frames = (EARLY, LATE)

    def __init__(self, config: DynamicsAlignmentConfig, embed_dim: int, dims: Dimensions) -> None:
        super().__init__()
        self.config = config
        window_dim = dims.window * dims.state + (dims.window - 1) * dims.action
        self.project_dynamics = nn.Sequential(
            nn.Linear(window_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, embed_dim),
        )
        if config.learn_temperature:
            # How much larger 1 / temperature is than at first, as a logarithm.
            self.log_gain = nn.Parameter(torch.zeros(()))

    def forward(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """embeddings [B, F, D] -> (loss, metrics), float32 scalars."""
        with torch.autocast(embeddings.device.type, enabled=False):
            images = torch.stack([embeddings[:, EARLY], embeddings[:, LATE]], dim=1)
            images = compared(images, self.config)
            windows = flatten_windows(batch.window_states, batch.window_actions)
            dynamics = self.project_dynamics(windows.float())

            pair_logits = self._pair_logits(images, dynamics)
            accuracy, chance = contrastive_metrics(pair_logits)
            metrics = {"accuracy": accuracy, "chance": chance}
            gain = self._gain()
            if gain is not None:
                pair_logits = gain * pair_logits
                metrics["temperature"] = self.config.temperature / gain.detach()
            if self.config.negatives == "pair":
                return contrastive_loss(pair_logits, self.config), metrics

            # Upstream: the pair only, which holds at most one bit of information per image.
            batch_logits = self._batch_logits(images, dynamics)
            if gain is not None:
                batch_logits = gain * batch_logits
            metrics["batch_accuracy"], metrics["batch_chance"] = contrastive_metrics(batch_logits)
            return contrastive_loss(batch_logits, self.config), metrics

    def _gain(self) -> Tensor | None:
        """The factor on similarities that is learned, if the temperature is."""
        if not self.config.learn_temperature:
            return None
        most = math.log(self.config.temperature / _LEAST_TEMPERATURE)
        return self.log_gain.clamp(max=most).exp()

    def _pair_logits(self, images: Tensor, dynamics: Tensor) -> Tensor:
        """images, dynamics [B, 2, D] -> [B, 2, 2]: own window, then the other one of the clip."""
        own = similarity(images, dynamics, self.config)
        other = similarity(images, dynamics.flip(1), self.config)
        return torch.stack([own, other], dim=-1)

    def _batch_logits(self, images: Tensor, dynamics: Tensor) -> Tensor:
        """images, dynamics [B, 2, D] -> [2 directions, 2B, 2N]: own, then the others of N clips."""
        directions = []
        for anchors, positives in ((images, dynamics), (dynamics, images)):
            candidates, first = gather_candidates(positives.flatten(0, 1))
            logits = pairwise_similarity(anchors.flatten(0, 1), candidates, self.config)
            directions.append(positives_first(logits, first))
        return torch.stack(directions)


def flatten_windows(states: Tensor, actions: Tensor) -> Tensor:
    """Interleave states [..., L, S] and actions [..., L - 1, A] in time: s, a, s, ..., a, s."""
    moves = torch.cat([states[..., :-1, :], actions], dim=-1)
    return torch.cat([moves.flatten(-2), states[..., -1, :]], dim=-1)
