"""Batches of an epoch. What samples hold is tested with the runs, in test_behaviour_cloning.py."""

from __future__ import annotations

import numpy as np

from mcr.policies.samples import batches


def test_batches_are_even():
    assert [len(rows) for rows in batches(np.arange(50), 20)] == [17, 17, 16]
    assert [len(rows) for rows in batches(np.arange(3), 2)] == [3]  # not 2 and 1
    assert [len(rows) for rows in batches(np.arange(1), 2)] == [1]
    assert np.concatenate(batches(np.arange(50), 20)).tolist() == list(range(50))
