"""State contrast: pictures of similar robot states are closer than pictures of different ones.

It may stand in the place of time contrast. It has no positives and negatives: every other picture
of the batch attracts a picture by as much as the states of the robot are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mcr.data.batch import EARLY, LATE, Batch, Dimensions
from mcr.errors import UserError
from mcr.objectives.contrast import ContrastConfig, compared, pairwise_similarity
from mcr.runs.gather import gather_rows
from mcr.runs.ranges import check_fields, choice, number


@dataclass
class StateContrastConfig(ContrastConfig):
    """How similar states are.

    state_temperature: distance of normalised states at which a picture attracts another one e times
                       less than an equal state would. It is a distance per dimension: the root of
                       the mean square, in standard deviations
    form:              "log_softmax" only
    """

    similarity: Annotated[str, choice(("l2", "cosine"))] = "cosine"
    temperature: Annotated[float, number(above=0)] = 0.1
    form: Annotated[str, choice(("log_softmax",))] = "log_softmax"
    state_temperature: Annotated[float, number(above=0)] = 0.2

    def __post_init__(self) -> None:
        check_fields(self, "objectives.state_contrast.")


class StateContrast(nn.Module):
    """Soft contrast by state distance, after RS-CL (arXiv 2510.01711); s_i is a robot state.

        w_ij = softmax over j of  -|s_i - s_j| / state_temperature        j != i
        p_ij = softmax over j of  S(z_i, z_j)                             j != i
        L    = mean over i of     -sum_j w_ij log p_ij

    i and j are the EARLY and LATE frames of all clips of the global batch, and s the state in the
    middle of their windows. RS-CL applies it to the output of a policy's vision-language model.

    Metrics: divergence, the Kullback-Leibler divergence of p from w, which is the loss without the
    entropy of w and becomes 0; blind_divergence, that of a uniform p: what an encoder reaches that
    tells no picture from another.
    Raises UserError if the data has no state.
    """

    frames = (EARLY, LATE)

    def __init__(self, config: StateContrastConfig, embed_dim: int, dims: Dimensions) -> None:
        super().__init__()
        if dims.state == 0:
            raise UserError(
                "loss_weights.state_contrast is above 0, but the data has no signal that is called "
                "state; name it with data.state_keys, or in a schema"
            )
        self.config = config

    def forward(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """embeddings [B, F, D] -> (loss, metrics), float32 scalars."""
        with torch.autocast(embeddings.device.type, enabled=False):
            images = rearrange(embeddings[:, [EARLY, LATE]], "b two d -> (b two) d")
            images = compared(images, self.config)
            states = batch.window_states[:, :, batch.window_states.shape[2] // 2].float()
            states = rearrange(states, "b two s -> (b two) s")
            candidates, first = gather_rows(images)
            everyones, _ = gather_rows(states)
            own = first + torch.arange(len(images), device=images.device)

            # The root makes the distance independent of the number of dimensions.
            distances = torch.cdist(states, everyones) / states.shape[1] ** 0.5
            logits = pairwise_similarity(images, candidates, self.config)
            weights = _without(-distances / self.config.state_temperature, own).softmax(dim=-1)
            log_chances = F.log_softmax(_without(logits, own), dim=-1)
            loss = -(weights * log_chances).sum(dim=-1).mean()
            entropy = -torch.special.xlogy(weights, weights).sum(dim=-1).mean()
            uniform = torch.full_like(loss, logits.shape[1] - 1).log()
            return loss, {
                "divergence": loss.detach() - entropy,
                "blind_divergence": uniform - entropy,
            }


def _without(values: Tensor, own: Tensor) -> Tensor:
    """Leave column own[i] out of each row i of [R, N]: [R, N - 1]."""
    columns = torch.arange(values.shape[1] - 1, device=values.device)
    return values.gather(1, columns + (columns >= own[:, None]))
