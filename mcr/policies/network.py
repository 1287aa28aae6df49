"""What a policy does with its observation: hidden layers, head, chunks, standardised actions.

`policy.Policy` has one of torch's layers. `ensemble` has one of grouped layers, which are many
policies side by side. Both are trained with `PolicyConfig`.

Shapes: ... leading dimensions ([B] or [S, B]), A numbers of an action, C steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn

from mcr.policies.heads import HEADS, build_head
from mcr.runs.ranges import check_fields, choice, each, number, whole

FEATURE_NORMS = ("none", "batch_norm", "layer_norm")
# Standardised features further from their mean count as this many standard deviations. A unit that
# is active in few demonstrations can lie hundreds of them away in a rollout, and would decide it.
MOST_STD = 5.0


@dataclass
class PolicyConfig:
    """How a policy is built and trained.

    head:           "mlp", "gaussian" or "gmm"; see `heads`
    modes:          number of Gaussians of a gmm
    chunk:          number of actions that are predicted at a time, C
    hidden:         widths of the hidden layers, with ReLU (CortexBench: three of 256)
    dropout:        share of inputs and hidden units that are left out in training, drawn anew for
                    each sample, because a network easily memorises a few demonstrations
    standardise_actions: the network predicts actions minus their mean over the samples, divided by
                    their standard deviation
    learning_rate:  Adam's
    batch_size:     the largest number of samples in a batch; batches of an epoch are equally large
                    or differ by one sample
    epochs:         passes over the samples
    """

    head: Annotated[str, choice(HEADS)] = "mlp"
    modes: Annotated[int, whole(1)] = 5
    chunk: Annotated[int, whole(1)] = 1
    hidden: Annotated[list[int], each(whole(1))] = field(default_factory=lambda: [256, 256, 256])
    dropout: Annotated[float, number(least=0, below=1)] = 0.0
    standardise_actions: bool = True
    learning_rate: Annotated[float, number(above=0)] = 1e-3
    batch_size: Annotated[int, whole(1)] = 256
    epochs: Annotated[int, whole(1)] = 100

    def __post_init__(self) -> None:
        check_fields(self, "policy.")


class ActionNetwork(nn.Module):
    """Vectors [..., width] -> what the head reads, and from it losses and actions.

    linear:  makes a layer from its numbers of inputs and outputs
    dropout: acts on hidden units; None = torch's, with the share of `config`. Whoever owns the
             network applies it to the inputs too, because not all inputs are features.
    """

    def __init__(
        self,
        config: PolicyConfig,
        width: int,
        action_dim: int,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
        dropout: nn.Module | None = None,
    ):
        super().__init__()
        self.action_dim, self.chunk = action_dim, config.chunk
        self.head = build_head(config.head, config.chunk * action_dim, config.modes)
        self.dropout = dropout or nn.Dropout(config.dropout)
        widths = [width, *config.hidden, self.head.width]
        self.layers = nn.ModuleList(linear(*sizes) for sizes in pairwise(widths))
        self.standardise = Standardise(action_dim)

    def forward(self, vectors: Tensor) -> Tensor:
        """[..., width] -> [..., width of the head]."""
        for layer in self.layers[:-1]:
            vectors = self.dropout(layer(vectors).relu())
        return self.layers[-1](vectors)

    def loss(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Vectors [..., width] and demonstrated actions [..., C * A] -> losses [...]."""
        steps = rearrange(targets, "... (c a) -> ... c a", c=self.chunk)
        standard = rearrange(self.standardise(steps), "... c a -> ... (c a)")
        return self.head.loss(self(vectors), standard)

    def actions(self, vectors: Tensor) -> Tensor:
        """[..., width] -> the most likely actions [..., C, A]."""
        standard = self.head.action(self(vectors))
        return self.standardise.inverse(rearrange(standard, "... (c a) -> ... c a", c=self.chunk))


class Standardise(nn.Module):
    """(values - mean) / std for each column of [..., D]; changes nothing until `fit` is called."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, values: Tensor) -> None:
        """Use mean and standard deviation of [N, D]. A constant column is only shifted."""
        exact = values.double()
        mean = exact.mean(dim=0)
        std = (exact - mean).square().mean(dim=0).sqrt()
        self.mean, self.std = mean.float(), torch.where(std > 1e-6, std, 1.0).float()

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std

    def inverse(self, values: Tensor) -> Tensor:
        """The values that `forward` standardised."""
        return values * self.std + self.mean
