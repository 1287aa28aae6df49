"""Effective rank: how many directions a set of features uses.

Training logs it of embeddings, to see a collapse as it begins. `evaluation.offline` reports it of a
frozen encoder's features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank of `features`, float [N, D], as a float64 scalar on their device.

    Roy & Vetterli 2007: exp(-sum_i p_i log p_i), where p_i are the singular values of the centred
    features, divided by their sum. It lies between 1 and min(N - 1, D), and is 0 if all rows are
    equal. Its relative error is below 1e-5, which it reaches where features use few dimensions.
    """
    features = features.double()
    centred = features - features.mean(0)
    # The singular values are the square roots of the eigenvalues of the smaller product. Float64
    # makes up for the squares. On a GPU this is many times faster than `svdvals`.
    product = centred @ centred.mT if len(centred) < centred.shape[1] else centred.mT @ centred
    values = torch.linalg.eigvalsh(product).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    is_constant = values.max() < 1e-12 * features.abs().max().clamp(min=1)
    return entropy.exp().masked_fill(is_constant, 0)
