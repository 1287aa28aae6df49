"""Confidence intervals of scores: bootstrap and jackknife. Called by the scores of `offline`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import t

_RESAMPLES = 1000
_CONFIDENCE = 0.95


def bootstrap(
    statistic: Callable[..., float], rng: np.random.Generator, *sizes: int
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of index arrays, one per size, each drawn independently.

    The value is that of all in order; the interval the 2.5 and 97.5 percentiles over resamples.
    """
    value = statistic(*(np.arange(size) for size in sizes))
    draws = [
        statistic(*(rng.integers(size, size=size) for size in sizes)) for _ in range(_RESAMPLES)
    ]
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return value, float(low), float(high)


def jackknife(
    statistic: Callable[[np.ndarray], float], folds: list[np.ndarray]
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of bool [n], leaving each fold out in turn.

    The interval is Student's, with the standard error sqrt((g - 1) / g sum (x_i - mean x)^2).
    """
    count = len(folds)
    value = statistic(np.ones(len(folds[0]), bool))
    without = np.array([statistic(~fold) for fold in folds])
    error = np.sqrt((count - 1) * without.var())
    margin = t.ppf((1 + _CONFIDENCE) / 2, count - 1) * error
    return value, float(value - margin), float(value + margin)
