"""Hierarchical bootstrap of success rates, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from mcr.evaluation import intervals
from mcr.evaluation.intervals import hierarchical_bootstrap


def bootstrap(rates, trials):
    successes = np.round(np.asarray(rates) * trials).astype(int)
    return hierarchical_bootstrap(
        successes, np.full(successes.shape, trials), np.random.default_rng(0)
    )


def test_one_policy_has_the_interval_of_a_binomial():
    value, low, high = bootstrap([[[0.3]]], 50)
    assert value == 0.3
    assert low == pytest.approx(binom.ppf(0.025, 50, 0.3) / 50, abs=0.021)
    assert high == pytest.approx(binom.ppf(0.975, 50, 0.3) / 50, abs=0.021)


def test_three_encoders_of_certain_rates_have_27_resamples():
    """Of rates 0, 1, 1 the mean of three draws is 0 in 1/27 and 1 in 8/27 of all cases."""
    value, low, high = bootstrap([[[0.0]], [[1.0]], [[1.0]]], 20)
    assert (value, low, high) == (pytest.approx(2 / 3), 0.0, 1.0)
    # of 0, 1, 1, 1 it is 0 in 1/256 and 1/4 in 12/256, which are 1.6 and 5.1 percent in all
    rates = [[[0.0]], [[1.0]], [[1.0]], [[1.0]]]
    assert bootstrap(rates, 20)[1:] == (0.25, 1.0)


@pytest.mark.parametrize(
    ("rates", "variance"),
    [
        # encoders 0.2 and 0.6: (1 / M) of their variance; rollouts: p (1 - p) / (M T S n)
        ([[[0.2, 0.2]], [[0.6, 0.6]]], 0.04 / 2 + (0.16 + 0.24) / 2 / (4 * 100)),
        # policies 0.2 and 0.6 of each encoder: the same over S M
        ([[[0.2, 0.6]], [[0.2, 0.6]]], 0.04 / 4 + (0.16 + 0.24) / 2 / (4 * 100)),
        # tasks are not drawn: rollouts alone
        ([[[0.2, 0.2], [0.6, 0.6]]], (0.16 + 0.24) / 2 / (4 * 100)),
    ],
)
def test_variances_of_all_levels_add_up(rates, variance, monkeypatch):
    """The percentiles at one standard deviation of a normal distribution."""
    monkeypatch.setattr(intervals, "_CONFIDENCE", 0.6826895)
    many = np.repeat(np.asarray(rates), 12, axis=0)  # copies, so that sums are nearly normal
    value, low, high = bootstrap(many, 100)
    assert value == pytest.approx(0.4)
    assert (high - low) / 2 == pytest.approx(np.sqrt(variance / 12), rel=0.06)
