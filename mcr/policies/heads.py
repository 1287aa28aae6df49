"""Heads: what a policy's last layer says -> a loss against the demonstrated action, and an action.

    mlp       the action itself; mean squared error
    gaussian  mean and deviation of each of its numbers; negative log-likelihood
    gmm       a mixture of `modes` such Gaussians over all of them; negative log-likelihood

Heads have no parameters: the policy's last linear layer gives `width` numbers per state. All work
on any leading dimensions, so that an ensemble is one call. Used by `policy`, `behaviour_cloning`.
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
_LEAST_STD = 0.01  # of actions of the order of 1: keeps likelihoods of constant actions finite


class Head(Protocol):
    """width: numbers that it reads. A is the number of numbers in an action (or chunk of them)."""

    width: int

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """float [..., width] and demonstrated [..., A] -> [...]."""
        ...

    def action(self, output: Tensor) -> Tensor:
        """float [..., width] -> the most likely action [..., A]; nothing is drawn at random."""
        ...


def build_head(name: str, action_dim: int, modes: int) -> Head:
    """The head `name`; modes: of a gmm. Raises UserError for an unknown name or no modes."""
    require_choice("head", name, HEADS)
    if modes < 1:
        raise UserError(f"modes={modes} must be at least 1")
    if name == "mlp":
        return MlpHead(action_dim)
    return GaussianHead(action_dim) if name == "gaussian" else MixtureHead(action_dim, modes)


class MlpHead:
    """The action as it is; nothing squashes it."""

    def __init__(self, action_dim: int):
        self.width = action_dim

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(dim=-1)

    def action(self, output: Tensor) -> Tensor:
        return output


class GaussianHead:
    """Means, then what softplus makes deviations of."""

    def __init__(self, action_dim: int):
        self.width = 2 * action_dim

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -_gaussian(output).log_prob(target)

    def action(self, output: Tensor) -> Tensor:
        return _gaussian(output).mean


class MixtureHead:
    """Logits of the modes, then a Gaussian's numbers for each. It acts by the likeliest mode."""

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
    """Each step's next `chunk` actions: [N, A] of episodes of these lengths -> [N, chunk * A].

    Beyond the end of an episode its last action is repeated, as in diffusion policy.
    Raises UserError for a chunk below 1, or lengths that are not those of the actions.
    """
    if chunk < 1:
        raise UserError(f"chunk={chunk} must be at least 1")
    if sum(lengths) != len(actions):
        raise UserError(f"episodes have {sum(lengths)} steps in all, but {len(actions)} actions")
    ends = np.repeat(np.cumsum(lengths), lengths)[:, None]
    steps = np.minimum(np.arange(len(actions))[:, None] + np.arange(chunk), ends - 1)
    return actions[steps].reshape(len(actions), -1)
