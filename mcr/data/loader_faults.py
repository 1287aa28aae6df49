"""Loader processes that die or hang: either ends the run in one sentence.

`MixtureLoader` takes its batches through `watched`, and the training loop runs in `worker_errors`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from mcr.errors import UserError

_CONTINUE = "the same command goes on from the last checkpoint"
_DIED = (
    f"a loader process was killed, perhaps by the system because memory ran out; {_CONTINUE}, and "
    "fewer data.workers or a smaller data.prefetch need less memory"
)
_GRACE_S = 5.0  # how long the system may take to report the end of a process


class _NoBatch(Exception):
    """The time limit is over."""


def watched(loader: Iterable[Any], timeout_s: float) -> Iterator[Any]:
    """Yield the batches of a loader, which is torch's.

    Raises UserError if its processes give none for `timeout_s` seconds, and if one has died. The
    time is limited in the main thread only, where Python handles signals.
    """
    others = {*multiprocessing.active_children()}
    batches = iter(loader)
    workers = {*multiprocessing.active_children()} - others
    while True:
        try:
            with _time_limit(timeout_s if workers else 0):
                batch = next(batches)
        except StopIteration:
            return
        except _NoBatch as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _kill_children()
            raise UserError(
                f"the loader processes gave no batch within data.timeout_s={timeout_s:g} seconds; "
                "see whether the disk of the data, or its network file system, still answers; "
                f"{_CONTINUE}"
            ) from error
        except (EOFError, OSError) as error:  # of the connection that hands over the batch
            if not _has_died(workers):
                raise
            _kill_children()
            raise UserError(_DIED) from error
        yield batch


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Raise UserError if a loader process dies while this block runs.

    torch reports a death wherever this process is at that moment, so the block is the whole loop
    that uses the batches.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        _kill_children()
        raise UserError(_DIED) from error


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _NoBatch in the block after so many seconds; 0 = never.

    torch's own time limit does not hold while it fetches the memory of a batch from its process.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGALRM, _time_is_over)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, if a destructor swallows the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _time_is_over(signum: int, frame: object) -> NoReturn:
    raise _NoBatch


def _has_died(workers: Collection[BaseProcess]) -> bool:
    """Whether one of these processes has ended; its connections close a moment before."""
    deadline = time.monotonic() + _GRACE_S
    while workers and time.monotonic() < deadline:
        if any(worker.exitcode is not None for worker in workers):
            return True
        time.sleep(0.01)
    return False


def _kill_children() -> None:
    """Kill the loader processes. A stopped one would not end by itself, nor let this one end."""
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report each as an error
    try:
        for process in multiprocessing.active_children():
            process.kill()
            process.join(_GRACE_S)
    finally:
        signal.signal(signal.SIGCHLD, previous)
