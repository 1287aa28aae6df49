"""Loader processes that die or hang: one sentence, wherever the receiver is at that moment."""

import contextlib
import multiprocessing
import os
import signal
import time

import pytest

from mcr.data import loader_faults
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.loader_faults import _time_limit, watched, worker_errors
from mcr.data.selection import SelectionConfig, select_episodes
from mcr.errors import UserError

DIED = "a loader process was killed, perhaps by the system .* goes on from the last checkpoint"


@contextlib.contextmanager
def loader_at_work(shards):
    """The batches of a loader, with some of them ready, and its process."""
    config = DataConfig(workers=1, selection=SelectionConfig(min_frames=30))
    index = open_index(shards)
    episodes, _ = select_episodes(index, config.selection)
    before = {*multiprocessing.active_children()}
    batches = iter(ClipLoader(ClipDataset(index, episodes, config, seed=0), config, 2))
    next(batches)
    (process,) = {*multiprocessing.active_children()} - before
    time.sleep(0.5)  # not a condition of the test; it makes batches that are half handed over
    yield batches, process
    assert not process.is_alive()


def exhaust(batches):
    while True:
        next(batches)


def test_a_process_that_is_killed(shards):
    with (
        loader_at_work(shards) as (batches, process),
        pytest.raises(UserError, match=DIED),
        worker_errors(),
    ):
        os.kill(process.pid, signal.SIGKILL)
        exhaust(batches)


class BrokenConnection:
    """A loader whose connection breaks a moment before its process ends, as the system does it."""

    def __iter__(self):
        multiprocessing.Process(target=time.sleep, args=(0.3,), daemon=True).start()
        return self

    def __next__(self):
        raise ConnectionResetError(104, "Connection reset by peer")


def test_a_death_that_the_receiver_meets_at_the_connection_first():
    with pytest.raises(UserError, match=DIED):
        next(watched(BrokenConnection(), 60))


def test_a_process_that_hangs(shards, monkeypatch):
    with loader_at_work(shards) as (batches, process):
        monkeypatch.setattr(loader_faults, "_time_limit", lambda _: _time_limit(1))
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(UserError, match="gave no batch within data.timeout_s=1800 seconds"):
            exhaust(batches)
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
