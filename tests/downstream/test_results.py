"""Success rates and their intervals, against closed forms."""

import pytest

from mcr.downstream.results import wilson_interval


def test_wilson_interval():
    # Brown, Cai, DasGupta 2001: n = 10, 0 successes: upper end z^2 / (n + z^2)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 1.96**2 / (10 + 1.96**2)))
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + 1.96**2), 1.0))
    low, high = wilson_interval(5, 10)
    assert low + high == pytest.approx(1.0)
    assert low == pytest.approx(0.2366, abs=1e-4)
