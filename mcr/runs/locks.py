"""Locks: two processes that would write the same thing do so one after the other, or not at all.

What is renamed when it is complete (an index, a pack, a feature cache, an export) is locked beside
itself, by `exclusive`. A folder that grows while a run is at work (a training run, an evaluation)
is locked inside, by `exclusive_folder`.

The system releases a lock when its holder ends, however that ends. Processes that the holder has
forked do not keep it. Network file systems must support `flock`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mcr.errors import UserError

LOCK_NAME = ".lock"  # of a folder that grows

_POLL_S = 0.1
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[int] = set()  # descriptors of the locks that this process holds


@contextlib.contextmanager
def exclusive(path: Path, patience_s: float = math.inf, advice: str = "") -> Iterator[None]:
    """Hold the lock of what is written to `path`.

    The lock is the hidden file `.NAME.lock` beside `path`, which says who holds it.

    patience_s: seconds to wait for a process that holds it; math.inf waits as long as it takes and
                says so
    advice:     what else the user can do, for the message

    Raises UserError that names the other process if that holds the lock for longer, and UserError
    if the file system has no locks.
    """
    with _locked(path.with_name(f".{path.name}.lock"), path, patience_s, advice):
        yield


@contextlib.contextmanager
def exclusive_folder(folder: Path, advice: str, patience_s: float = 10.0) -> Iterator[None]:
    """Hold the lock of a folder that grows. It and its parents are made, and stay if not empty.

    The arguments and errors are those of `exclusive`. The lock is the file `.lock` in the folder.
    A process that was killed a moment ago may hold it still, so this waits before it raises.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder / LOCK_NAME, folder, patience_s, advice):
            yield
    finally:
        for each in new:  # the innermost first
            if each.exists() and not any(each.iterdir()):
                each.rmdir()


@contextlib.contextmanager
def _locked(file: Path, path: Path, patience_s: float, advice: str) -> Iterator[None]:
    descriptor = _wait_for(file, path, patience_s, advice)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a process that was forked meanwhile
            file.unlink(missing_ok=True)  # before it is released: the next holder makes a new one
            _held.remove(descriptor)
            os.close(descriptor)


def _wait_for(file: Path, path: Path, patience_s: float, advice: str) -> int:
    deadline, has_told = time.monotonic() + patience_s, False
    while (descriptor := _try(file)) is None:
        if time.monotonic() > deadline:
            ways = f"; wait for it{advice and f', or {advice}'}"
            raise UserError(f"{path}: {_holder(file)} writes it at this moment{ways}")
        if patience_s == math.inf and not has_told:
            print(f"{path}: {_holder(file)} writes it; waiting for that", flush=True)
            has_told = True
        time.sleep(_POLL_S)
    return descriptor


def _try(file: Path) -> int | None:
    """Return the descriptor of the locked file, or None if another process has the lock."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same_file(descriptor, file):
            os.truncate(descriptor, 0)
            os.write(descriptor, _this_process().encode())
            return descriptor
    except BlockingIOError:
        pass
    except OSError as error:
        os.close(descriptor)
        if error.errno in _WITHOUT_LOCKS:
            raise UserError(
                f"{file}: this file system cannot lock files ({error.strerror}), so that two runs "
                "could not be kept apart; mount it with locks (Lustre: -o flock)"
            ) from error
        raise OSError(error.errno, error.strerror, str(file)) from error
    os.close(descriptor)
    return None


def _is_same_file(descriptor: int, file: Path) -> bool:
    """Is the locked file still the one of that name? Its last holder may have deleted it."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _this_process() -> str:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return f"process {os.getpid()} on {socket.gethostname()} ({command[:200]})"


def _holder(file: Path) -> str:
    try:
        return file.read_text(errors="replace") or "another process"
    except FileNotFoundError:  # it has just ended
        return "another process"


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# Loader processes are forked. They outlive a killed parent by seconds and would keep its locks.
os.register_at_fork(after_in_child=_close_in_child)
