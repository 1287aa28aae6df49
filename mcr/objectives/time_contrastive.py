"""Time contrast: embeddings of frames that are close in time are closer than those of others.

The others are distant frames of the same clip, and frames of other clips. The objective reads
neither states nor actions, and has no parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from mcr.data.batch import EARLY, LATE, MIDDLE, Batch, Dimensions
from mcr.objectives.contrast import (
    SELECTIONS,
    ContrastConfig,
    choose_other_clips,
    compared,
    contrastive_loss,
    contrastive_metrics,
    gather_candidates,
    similarity,
)
from mcr.runs.ranges import check_fields, choice, whole


@dataclass
class TimeContrastiveConfig(ContrastConfig):
    """The negatives of a frame that come from other clips.

    negatives:     "others" = never the clip itself; "permutation" = random permutations of the
                   batch (the paper's code)
    num_negatives: number of other clips for each anchor; 0 = negatives from its own clip only
    group:         negatives come from the same `group` consecutive clips; 0 = from the global
                   batch, whichever processes hold it
    """

    negatives: Annotated[str, choice(SELECTIONS)] = "others"
    num_negatives: Annotated[int, whole(0, note="R3M's is 3")] = 3
    group: Annotated[int, whole(0, note="0 is the whole batch")] = 0

    def __post_init__(self) -> None:
        check_fields(self, "objectives.time_contrastive.")


class TimeContrastive(nn.Module):
    """R3M (arXiv 2203.12601), "time contrastive learning", used unchanged by MCR.

        anchor LATE:   S(LATE, MIDDLE)  against  S(LATE, EARLY), S(LATE, LATE of 3 other clips)
        anchor EARLY:  S(EARLY, MIDDLE) against  S(EARLY, LATE), S(EARLY, EARLY of 3 other clips)
        L = mean over both anchors of  -log softmax(positive; positive and negatives)

    Metrics: accuracy and chance (the positive among all candidates); order_accuracy (MIDDLE against
    the far end of the same clip only; chance is 0.5).
    """

    frames = (EARLY, MIDDLE, LATE)

    def __init__(self, config: TimeContrastiveConfig, embed_dim: int, dims: Dimensions) -> None:
        super().__init__()
        self.config = config

    def forward(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """embeddings [B, F, D] -> (loss, metrics), float32 scalars."""
        with torch.autocast(embeddings.device.type, enabled=False):
            early, middle, late = (
                compared(embeddings[:, frame], self.config) for frame in (EARLY, MIDDLE, LATE)
            )
            logits = torch.stack(
                [self._logits(late, middle, early), self._logits(early, middle, late)]
            )
            accuracy, chance = contrastive_metrics(logits)
            order_accuracy, _ = contrastive_metrics(logits[..., :2])
            metrics = {"accuracy": accuracy, "chance": chance, "order_accuracy": order_accuracy}
            return contrastive_loss(logits, self.config), metrics

    def _logits(self, anchors: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """[B, D] each -> [B, 2 + num_negatives]: near, far, then other clips' anchors."""
        columns = [similarity(anchors, near, self.config), similarity(anchors, far, self.config)]
        logits = torch.stack(columns, dim=-1)
        if self.config.num_negatives == 0:
            return logits
        others = similarity(anchors[:, None], self._other_clips(anchors), self.config)
        return torch.cat([logits, others], dim=-1)

    def _other_clips(self, anchors: Tensor) -> Tensor:
        """anchors [B, D] -> the same frame of other clips [B, num_negatives, D]."""
        candidates, first = gather_candidates(anchors)
        config = self.config
        chosen = choose_other_clips(
            len(candidates), config.num_negatives, config.negatives, anchors.device, config.group
        )
        return candidates[chosen[first : first + len(anchors)]]
