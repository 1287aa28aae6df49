"""Distillation: the embedding of a picture predicts a frozen teacher's features of that picture.

The teacher is any encoder. It belongs to the pretrainer, which puts its features into the batch;
here are the head and the loss. It reads neither states nor actions, and has no negatives. The head
is discarded after pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcr.data.batch import ALL_FRAMES, Dimensions, TaughtBatch
from mcr.errors import UserError
from mcr.runs.gather import gather_rows
from mcr.runs.ranges import ANY_TEXT, check_fields, choice

DISTANCES = ("cosine", "mse")


@dataclass
class DistillationConfig:
    """The teacher and the distance to its features.

    teacher:  anything that `mcr.load_model` reads. It sees the student's crops and colours, at its
              own size and with its own normalisation
    distance: "cosine" = 1 - cosine similarity; "mse" = mean squared error, in the squared units of
              the teacher's features
    """

    teacher: Annotated[str, ANY_TEXT] = ""
    distance: Annotated[str, choice(DISTANCES)] = "cosine"

    def __post_init__(self) -> None:
        check_fields(self, "objectives.distillation.")


class Distillation(nn.Module):
    """Knowledge distillation by features (Romero et al. 2015, arXiv 1412.6550); W is linear.

        y_t = the teacher's features of the same crop as z_t
        L = mean over all five frames of  1 - cos(W z_t + b, y_t)           (cosine)
                                      or  mean over features of (W z_t + b - y_t)^2   (mse)

    Upstream: neither MCR nor R3M has a teacher; X-Distill (arXiv 2601.11269) uses the mse.

    Metrics: similarity, the mean cosine of prediction and teacher; blind_similarity, that of the
    global batch's mean teacher feature and the teacher: what a constant prediction reaches.
    Raises UserError if there is no teacher.
    """

    frames = ALL_FRAMES

    def __init__(self, config: DistillationConfig, embed_dim: int, dims: Dimensions) -> None:
        super().__init__()
        if dims.teacher == 0:
            raise UserError(
                "loss_weights.distillation is above 0, but objectives.distillation.teacher is not "
                "set: name an encoder, which is anything that mcr.load_model reads"
            )
        self.config = config
        self.head = nn.Linear(embed_dim, dims.teacher)

    def forward(self, embeddings: Tensor, batch: TaughtBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """embeddings [B, F, D] -> (loss, metrics), float32 scalars."""
        with torch.autocast(embeddings.device.type, enabled=False):
            taught = batch.teacher_features.float()
            predicted = self.head(embeddings.float())
            similarity = F.cosine_similarity(predicted, taught, dim=-1).mean()
            everyones, _ = gather_rows(taught)
            blind = F.cosine_similarity(everyones.mean((0, 1)), taught, dim=-1).mean()
            metrics = {"similarity": similarity.detach(), "blind_similarity": blind}
            if self.config.distance == "mse":
                return F.mse_loss(predicted, taught), metrics
            return 1 - similarity, metrics
