"""Results of an evaluation: success rates with their intervals, one table for all suites.

Called by `evaluation`, `robomimic.comparison` and scripts/evaluate.py.
"""

from __future__ import annotations

import math


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a success rate (Wilson 1927)."""
    z = 1.96
    share, scale = successes / trials, 1 + z**2 / trials
    centre = share + z**2 / (2 * trials)
    margin = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)
