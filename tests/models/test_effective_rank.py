"""The effective rank against closed forms and against NumPy's singular values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mcr.models.effective_rank import effective_rank


@pytest.fixture
def corners():
    """float64 [16, 4]: the corners of a hypercube, whose columns are centred and orthogonal."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)


@pytest.fixture
def directions():
    """float64 [4, 50], orthonormal rows."""
    random = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(random).Q.T


def test_equal_directions_are_counted(corners, directions):
    assert effective_rank(corners).item() == pytest.approx(4, rel=1e-12)  # more rows than columns
    assert effective_rank(corners @ directions + 7).item() == pytest.approx(4)  # fewer
    assert effective_rank(corners[:, :1] @ directions[:1]).item() == pytest.approx(1)


def test_unequal_directions_count_by_the_entropy_of_their_shares(corners, directions):
    weights = torch.tensor([8.0, 4, 2, 2], dtype=torch.float64)  # the singular values are 4 times
    # shares 1/2, 1/4, 1/8, 1/8: their entropy is 7/4 bits
    expected = pytest.approx(2**1.75)
    assert effective_rank(corners * weights).item() == expected
    assert effective_rank(corners * weights @ directions).item() == expected


def test_equal_rows_have_no_direction():
    assert effective_rank(torch.full((6, 3), 4.2, dtype=torch.float64)).item() == 0
    assert effective_rank(torch.full((80, 512), 4.2)).item() == 0
    assert effective_rank(torch.ones(1, 5)).item() == 0


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_it_agrees_with_the_singular_values(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    centred = features.numpy().astype(np.float64)
    values = np.linalg.svd(centred - centred.mean(0), compute_uv=False)
    share = [value for value in values / values.sum() if value > 1e-12]
    expected = math.exp(-sum(p * math.log(p) for p in share))
    result = effective_rank(features)
    assert result.dtype == torch.float64 and result.item() == pytest.approx(expected)
