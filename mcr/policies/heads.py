"""Heads: the output of a policy's last layer -> an action, and a loss against the demonstrated one.

    mlp       the action itself; mean squared error
    gaussian  mean and standard deviation of each number of the action; negative log-likelihood
    gmm       a mixture of `modes` such Gaussians over the whole action; negative log-likelihood

Heads have no parameters. They read the `width` numbers that the policy's last linear layer gives
for each state. Leading dimensions are arbitrary, so one call serves an ensemble. Used by `network`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from mcr.errors import UserError, require_choice

HEADS = ("mlp", "gaussian", "gmm")
_LEAST_STD = 0.01  # keeps the likelihood finite where an action is constant; actions are about 1


class Head(Protocol):
    """width: how many numbers it reads. A: how many numbers an action (or a chunk) has."""

    width: int

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """float [..., width] and demonstrated [..., A] -> [...]."""
        ...

    def action(self, output: Tensor) -> Tensor:
        """float [..., width] -> the most likely action [..., A]; nothing is drawn at random."""
        ...


def build_head(name: str, action_dim: int, modes: int) -> Head:
    """The head called `name`. modes: of a gmm. Raises UserError for an unknown name or no modes."""
    require_choice("head", name, HEADS)
    if modes < 1:
        raise UserError(f"modes={modes} must be at least 1")
    if name == "mlp":
        return MlpHead(action_dim)
    return GaussianHead(action_dim) if name == "gaussian" else MixtureHead(action_dim, modes)


class MlpHead:
    """The output is the action. It is not limited to a range."""

    def __init__(self, action_dim: int):
        self.width = action_dim

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(dim=-1)

    def action(self, output: Tensor) -> Tensor:
        return output


class GaussianHead:
    """The output is the means, then the standard deviations before softplus."""

    def __init__(self, action_dim: int):
        self.width = 2 * action_dim

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -_gaussian(output).log_prob(target)

    def action(self, output: Tensor) -> Tensor:
        return _gaussian(output).mean


class MixtureHead:
    """The output is a logit per mode, then each mode's Gaussian. The likeliest mode acts."""

    def __init__(self, action_dim: int, modes: int):
        self.modes = modes
        self.width = modes * (1 + 2 * action_dim)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        logits, gaussians = self._parts(output)
        mixture = MixtureSameFamily(
            Categorical(logits=logits, validate_args=False), gaussians, validate_args=False
        )
        return -mixture.log_prob(target)

    def action(self, output: Tensor) -> Tensor:
        logits, gaussians = self._parts(output)
        return torch.take_along_dim(
            gaussians.mean, logits.argmax(-1)[..., None, None], dim=-2
        ).squeeze(-2)

    def _parts(self, output: Tensor) -> tuple[Tensor, Independent]:
        numbers = rearrange(output[..., self.modes :], "... (m a) -> ... m a", m=self.modes)
        return output[..., : self.modes], _gaussian(numbers)


def _gaussian(numbers: Tensor) -> Independent:
    mean, scale = numbers.chunk(2, dim=-1)
    normal = Normal(mean, F.softplus(scale) + _LEAST_STD, validate_args=False)
    return Independent(normal, 1, validate_args=False)


def action_chunks(actions: np.ndarray, lengths: Sequence[int], chunk: int) -> np.ndarray:
    """The next `chunk` actions of each step: [N, A] -> [N, chunk * A].

    lengths: numbers of steps of the episodes, in order
    At the end of an episode its last action is repeated, as in diffusion policy.
    Raises UserError for a chunk below 1, and if the lengths do not add up to N.
    """
    if chunk < 1:
        raise UserError(f"chunk={chunk} must be at least 1")
    if sum(lengths) != len(actions):
        raise UserError(f"episodes have {sum(lengths)} steps in all, but {len(actions)} actions")
    ends = np.repeat(np.cumsum(lengths), lengths)[:, None]
    steps = np.minimum(np.arange(len(actions))[:, None] + np.arange(chunk), ends - 1)
    return actions[steps].reshape(len(actions), -1)
