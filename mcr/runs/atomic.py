"""Atomic writes: a file or folder that has its final name is complete.

Everything that `mcr` writes goes through here. It is written under a temporary name beside its
destination, synced to the disk, and renamed. A process that is killed therefore leaves either the
old content or the new one, and perhaps a `.NAME.HOST-PROCESS-NUMBER.partial`. That name is unique,
so that two processes which write the same thing do not mix it. What a dead process of this machine
has left is deleted when the same thing is written again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from mcr.errors import UserError

_PROBE_BYTES = 1 << 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_live: set[str] = set()  # temporary names that this process uses at this moment


@contextlib.contextmanager
def atomic_path(path: Path, replace_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to, and rename it `path` after the block.

    An existing file at `path` is replaced. A folder at `path` must be empty, unless
    `replace_folder`. If the block raises, what it has written is deleted and `path` stays as it
    was. A full disk raises OSError that names `path`, also if a library reports it in other words.
    """
    remove_leftovers(path)
    partial = path.with_name(_temporary_name(path.name, "partial"))
    _live.add(partial.name)
    try:
        with system_errors(path):
            yield partial
            sync(partial)
            if replace_folder and path.is_dir():
                _exchange(partial, path)
            else:
                partial.replace(path)
    finally:
        remove(partial)
        _live.discard(partial.name)


@contextlib.contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Raise OSError that names `path` if something in the block fails because the disk is full.

    NumPy, torch, safetensors and HDF5 report that in their own words. Therefore this asks the
    system, after an error, whether anything can be written beside `path`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None:
            number = _why_unwritable(path.parent)
        if number not in _FULL:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _why_unwritable(folder: Path) -> int | None:
    """Return the number of the system's error if nothing can be written to a folder."""
    probe = folder / _temporary_name("probe", "partial")
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
        sync(probe)
    except OSError as error:
        return error.errno
    finally:
        with contextlib.suppress(OSError):  # it could not even be made
            probe.unlink()
    return None


# --------------------------------------------------------------------------- temporary names


def _temporary_name(name: str, kind: str) -> str:
    return f".{name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.{kind}"


_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<host>[\w-]+)-(?P<process>\d+)-[0-9a-f]{8}\.\w+$")


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:40]


def remove_leftovers(path: Path) -> None:
    """Delete what dead processes of this machine have left of writing `path`.

    If one died between the two renames that replace a folder, the old folder gets its name back.
    """
    for leftover in _temporaries(path.parent):
        found = _TEMPORARY.match(leftover.name)
        if found and found["name"] == path.name and _is_dead(leftover.name):
            if leftover.suffix == ".replaced" and not path.exists():
                leftover.rename(path)
            else:
                remove(leftover)


def remove_all_leftovers(folder: Path) -> None:
    """Delete what killed processes, of any machine, have left in a folder that no other writes to.

    The caller holds the folder's lock.
    """
    for leftover in _temporaries(folder):
        if leftover.name not in _live:
            remove(leftover)


def _temporaries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [folder / name for name in os.listdir(folder) if _TEMPORARY.match(name)]


def _is_dead(name: str) -> bool:
    found = _TEMPORARY.match(name)
    assert found is not None
    process = int(found["process"])
    if found["host"] != _host():
        return False  # of another machine, which cannot be asked
    if process == os.getpid():
        return name not in _live
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # a process of another user
    return False


# --------------------------------------------------------------------------- renaming


def _exchange(partial: Path, path: Path) -> None:
    """Give `partial` the name of the folder `path`, and the other way round, in one step.

    A file system that cannot do this in one step, such as NFS, gets two renames.
    """
    if _rename_exchange(partial, path):
        return
    replaced = path.with_name(_temporary_name(path.name, "replaced"))
    _live.add(replaced.name)
    path.rename(replaced)
    partial.rename(path)
    remove(replaced)
    _live.discard(replaced.name)


def _rename_exchange(first: Path, second: Path) -> bool:
    """Exchange two names. Return False if the system or the file system cannot."""
    if _renameat2 is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    if _renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# Linux; Python has no name for it.
_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


# --------------------------------------------------------------------------- files


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def reserve(path: Path, num_bytes: int) -> None:
    """Make a file at least so large, on the disk. What it holds stays.

    A process that writes to a mapped file is killed (SIGBUS) if the disk is full then. Raises
    OSError that names the file if there is no room.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, num_bytes)
        else:
            os.truncate(descriptor, max(num_bytes, os.fstat(descriptor).st_size))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Flush a file, or all files of a folder, to the disk."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
