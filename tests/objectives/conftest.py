"""Made-up batches and embeddings of any dimensions for the tests of the objectives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mcr.data.batch import NUM_FRAMES, Batch, Dimensions, TaughtBatch


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """`make_batch(num_clips, dims)`: standard-normal signals, blank 8-pixel frames; seed 0."""

    def make(num_clips: int, dims: Dimensions) -> Batch:
        normal = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(num_clips, *shape, generator=normal)

        return TaughtBatch(
            frames=torch.zeros(num_clips, NUM_FRAMES, 3, 8, 8, dtype=torch.uint8),
            crops=torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(num_clips, NUM_FRAMES, 4),
            colors=torch.tensor([[1.0], [0.0]]).expand(num_clips, NUM_FRAMES, 2, 3),
            actions=draw(NUM_FRAMES, dims.action),
            window_states=draw(2, dims.window, dims.state),
            window_actions=draw(2, dims.window - 1, dims.action),
            samples=torch.arange(num_clips),
            teacher_features=draw(NUM_FRAMES, dims.teacher),
        )

    return make


@pytest.fixture
def make_embeddings() -> Callable[..., Tensor]:
    """`make_embeddings(num_clips, embed_dim, distance=1)`: a leaf [B, F, D].

    The distance between two rows is about `distance`.
    """

    def make(num_clips: int, embed_dim: int, distance: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        normal = torch.randn(num_clips, NUM_FRAMES, embed_dim, generator=generator)
        return (normal * distance / (2 * embed_dim) ** 0.5).requires_grad_()

    return make
