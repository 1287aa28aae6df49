"""Errors that a user can fix, and how a command line shows them.

A `UserError` carries one sentence that names the file, the value and the fix. Any other exception
that reaches the command line is a bug in `mcr` and keeps its traceback. Every module may import
this one; it imports nothing of `mcr`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import NoReturn


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do about it."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest candidate, or list all if none is close."""
    names = sorted(candidates)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from: {', '.join(names)}"


def require_choice(what: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; otherwise raise a UserError that names the nearest.

    what: how the message calls the value, for example "data.on_error"
    """
    choices = list(choices)
    if value not in choices:
        raise UserError(f"{what}={value!r} is unknown{nearest(str(value), choices)}")
    return value


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a module that only `pip install mcr[extra]` installs.

    Raises UserError with that command if it is not installed. A module that is installed but fails
    while it is imported raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(
            f"this needs {error.name}, which is not installed: pip install 'mcr[{extra}]'"
        ) from error


@contextlib.contextmanager
def interruptible_imports() -> Iterator[None]:
    """Let Ctrl-C end the program at once, in one line, while modules are imported in the block.

    KeyboardInterrupt in the middle of torch's start may reach C++ code, which then aborts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, _end_by_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _end_by_interrupt(signum: int, frame: object) -> NoReturn:
    print("error: interrupted", file=sys.stderr, flush=True)
    os._exit(2)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Print an error that a user can fix as one line on stderr, and exit with code 2.

    Such errors are UserError, Ctrl-C, and the system errors in `_FIXES`, such as a full disk.
    """
    try:
        yield
    except UserError as error:
        sys.exit(_complain(str(error)))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted"))
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_complain(f"{where}{error.strerror}; {_FIXES[error.errno]}"))


def command_line(main: Callable[[], int | None]) -> Callable[[], None]:
    """Make a program of `main`: its return value is the exit code, and its errors are plain."""

    @functools.wraps(main)
    def run() -> None:
        with plain_errors():
            sys.exit(main() or 0)

    return run


_FIXES = {
    errno.ENOSPC: "free some space or choose another disk, then run the same command again",
    errno.EDQUOT: "your disk quota is used up: free some space, then run the same command again",
    errno.EFBIG: "a limit on the size of files was reached: see `ulimit -f` and the file system",
    errno.EIO: "the disk or its network file system fails; run the same command again after that",
    errno.EACCES: "check the permissions or choose a folder that you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.EISDIR: "a folder stands where a file is expected",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n 4096`",
}


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
