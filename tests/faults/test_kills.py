"""A few kills at random moments, as `benchmarks/faults.py` does by the hundred."""

import os
import subprocess
import sys
from pathlib import Path

from mcr.runs.processes import ordered_map

ROOT = Path(__file__).parents[2]


def test_nothing_is_lost():
    options = ["--kills", "4", "--seed", "1", "--only", "extract", "index", "pack"]
    done = subprocess.run(
        [sys.executable, "benchmarks/faults.py", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| extract", "| index", "| pack"]
    assert all(row[1] == "4" for row in rows)


def test_work_that_was_killed_after_its_last_piece_has_nothing_left_to_do():
    assert list(ordered_map(str, [], workers=2)) == []
