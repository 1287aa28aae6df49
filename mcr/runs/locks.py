"""Locks: two processes that would write the same thing do so one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of what is written to `path`. Waits for a process that has it, and says so.

    The lock is the hidden file `.NAME.lock` beside `path`, which stays there. The system releases
    it when its holder ends, however that ends. Network file systems must support `flock`.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{path}: another process writes it; waiting for that", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
