"""95% confidence intervals of scores: bootstrap and jackknife. Called by the scores of `offline`.

`scipy.stats.bootstrap` refuses a sample of one, such as a single seed, and scipy has no jackknife.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import t

_RESAMPLES = 1000
_CONFIDENCE = 0.95


def bootstrap(
    statistic: Callable[..., float], rng: np.random.Generator, *sizes: int
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of several samples, which are resampled independently.

    statistic: takes an array of indices for each of `sizes`
    The value is the statistic of all indices in order. The interval is from the 2.5th to the 97.5th
    percentile over resamples.
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
    """(value, low, high) of a statistic, from leaving out each of g folds in turn.

    statistic: takes the selection of rows, bool [n]
    folds:     bool [n] each
    The interval is Student's with g - 1 degrees of freedom and the standard error
    sqrt((g - 1) / g sum_i (x_i - mean x)^2), where x_i is the statistic without fold i.
    """
    count = len(folds)
    value = statistic(np.ones(len(folds[0]), bool))
    without = np.array([statistic(~fold) for fold in folds])
    error = np.sqrt((count - 1) * without.var())
    margin = t.ppf((1 + _CONFIDENCE) / 2, count - 1) * error
    return value, float(value - margin), float(value + margin)
