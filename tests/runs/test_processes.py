"""Work that kills its process: it is done again, or reported, and the rest goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from mcr.errors import UserError
from mcr.runs.processes import ordered_map, process_pool


def square(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number**2


def kill_once(mark: Path) -> str:
    if mark.suffix == ".once" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mark.stem


def tiring(number: int) -> int:
    time.sleep(0.05)
    return number


def test_work_that_kills_its_process_is_replaced_and_the_rest_is_done():
    found = list(ordered_map(square, range(8), workers=2, on_lost=lambda pool, item: -item))
    assert found == [0, 1, 4, -3, 16, 25, 36, 49]


def test_work_that_kills_its_process_ends_a_run_that_has_no_place_for_it():
    message = "a worker process was killed.*; kept"
    with pytest.raises(UserError, match=message), process_pool(2, "; kept") as pool:
        list(pool.map(square, range(8)))


def test_work_that_was_killed_once_is_done_again(tmp_path):
    marks = [tmp_path / f"{number}{'.once' if number == 2 else '.x'}" for number in range(5)]
    assert list(ordered_map(kill_once, marks, workers=2)) == ["0", "1", "2", "3", "4"]


def test_a_worker_that_is_killed_from_outside_costs_nothing():
    with process_pool(2) as pool:
        results = pool.map(tiring, range(30))
        first = next(results)
        for process in list(pool._executor._processes.values()):
            os.kill(process.pid, signal.SIGKILL)
        assert [first, *results] == list(range(30))


def test_what_a_call_raises_is_raised():
    with process_pool(2) as pool, pytest.raises(TypeError):
        list(pool.map(square, ["text", 1]))
