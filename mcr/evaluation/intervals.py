"""95% confidence intervals: bootstrap and jackknife of scores, bootstrap of success rates.

Called by the scores of `offline` and by `results`.

`scipy.stats.bootstrap` refuses a sample of one, such as a single seed, and scipy has no jackknife.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import t

_RESAMPLES = 1000
_RESAMPLES_OF_RATES = 10_000  # these cost little
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


def hierarchical_bootstrap(
    successes: np.ndarray, trials: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """(value, low, high) of a recipe's success rate, over pretraining seeds, policies and rollouts.

    successes, trials: counts of M encoders, T tasks and S policies for each task, int [M, T, S]
    The value is the mean of all rates. The interval is from the 2.5th to the 97.5th percentile over
    resamples. A resample draws M encoders, for each of them and each task S of its policies, and
    for each policy as many rollouts as it has, all with replacement. The tasks are not drawn.

    With few encoders the interval is too narrow: resampling M of them shows only (M - 1) / M of the
    variance between them.
    """
    num_encoders, num_tasks, num_policies = successes.shape
    size = (_RESAMPLES_OF_RATES, num_encoders, num_tasks, num_policies)
    encoders = rng.integers(num_encoders, size=(*size[:2], 1, 1))
    tasks = np.arange(num_tasks)[:, None]
    policies = rng.integers(num_policies, size=size)
    drawn, rates = trials[encoders, tasks, policies], successes / trials
    # The number of successes among n rollouts drawn with replacement is binomial.
    won = rng.binomial(drawn, rates[encoders, tasks, policies])
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile((won / drawn).mean(axis=(1, 2, 3)), [tail, 1 - tail])
    return float(rates.mean()), float(low), float(high)


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
