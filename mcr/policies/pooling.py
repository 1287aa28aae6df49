"""Pooling of a feature map by layers that learn with the policy: what is seen, and where.

`observation_encoder` has one of them, `ensemble` one for each policy and camera.

Shapes: B maps, D features, h w of a map, Q queries.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

KEYPOINTS = 32  # of a spatial softmax, as in robomimic and diffusion policy


class SpatialSoftmax(nn.Module):
    """Positions of 32 learned keypoints in a map (Levine et al. 2016): [B, D, h, w] -> [B, 64].

    First all expected x, from -1 (left) to 1, then all expected y, from -1 (top) to 1.
    """

    def __init__(self, width: int):
        super().__init__()
        self.keypoints = nn.Conv2d(width, KEYPOINTS, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        scores = self.keypoints(features)
        height, width = scores.shape[-2:]
        chances = scores.flatten(-2).softmax(dim=-1).unflatten(-1, (height, width))
        x = chances.sum(dim=-2) @ torch.linspace(-1, 1, width, device=scores.device)
        y = chances.sum(dim=-1) @ torch.linspace(-1, 1, height, device=scores.device)
        return torch.cat([x, y], dim=-1)


class TokenAttention(nn.Module):
    """Attention of learned queries over the tokens of a map: [B, D, h, w] -> [B, out_dim].

    A query scores each token, and the softmax of the scores weighs them. With one query and no
    `size`, the result is the weighted mean, [B, D], which is the plain mean before training.

    num_queries: their results are concatenated; more than one begin at random
    size:        (h, w) of the maps. Each query then also has a learned score for each place, and
                 its result has two numbers more, the expected x and y as of `SpatialSoftmax`.
    generator:   of the random queries
    """

    def __init__(
        self,
        width: int,
        num_queries: int = 1,
        size: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        queries = torch.zeros(width)  # one query has no dimension of its own in files of policies
        if num_queries > 1:
            queries = torch.empty(num_queries, width).normal_(generator=generator)
        self.query = nn.Parameter(queries)
        self.places = nn.Parameter(torch.zeros(num_queries, size[0] * size[1])) if size else None
        self.out_dim = num_queries * (width + (2 if size else 0))

    def forward(self, features: Tensor) -> Tensor:
        tokens = rearrange(features, "b d h w -> b (h w) d")
        queries = self.query.view(-1, tokens.shape[-1])
        scores = rearrange(tokens @ queries.T, "b t q -> b q t") / tokens.shape[-1] ** 0.5
        if self.places is None:
            return (scores.softmax(dim=-1) @ tokens).flatten(1)
        attention = (scores + self.places).softmax(dim=-1)
        places = _places(*features.shape[-2:]).to(tokens)
        return torch.cat([attention @ tokens, attention @ places], dim=-1).flatten(1)


def _places(height: int, width: int) -> Tensor:
    """x and y of each token, row by row, from -1 to 1: [h * w, 2]."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1)
