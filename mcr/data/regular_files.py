"""Reads files of data sets that nobody has checked: only regular ones, and none that is too large.

A pipe would block for ever, a device such as /dev/zero never ends, and a file with holes may state
a size that no memory has. The readers of JSON, pickles, texts and single pictures use this module.
The readers of shards, HDF5, parquet and video check the kind of file themselves and read in pieces.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 2**28  # of a file that is read as a whole
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe must not wait for its writer


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file.

    limit: bytes that it may have

    Raises ValueError for anything but a regular file and for a larger one, and OSError.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise ValueError("is no regular file") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("is no regular file")
        if about.st_size > limit:
            raise ValueError(f"has {about.st_size:,} bytes; at most {limit:,} are read")
        content, missing = b"", about.st_size
        while missing and (piece := os.read(descriptor, missing)):  # mostly all of it at once
            content = content + piece if content else piece
            missing -= len(piece)
        return content
    finally:
        os.close(descriptor)


def is_readable(path: Path) -> bool:
    """Is this a regular file that `read_bytes` reads?"""
    return path.is_file() and path.stat().st_size <= MAX_BYTES


def status(path: str | os.PathLike[str]) -> os.stat_result:
    """Return size, times and kind of a file; those of a link itself if it leads nowhere."""
    try:
        return os.stat(path)
    except OSError:
        return os.lstat(path)


def shown(text: str) -> str:
    """Return a text for messages and reports. It may hold names of files that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_text(path: Path) -> str:
    """Return the content of a text file. Raises ValueError, for other texts than UTF-8, too."""
    return read_bytes(path).decode("utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ValueError if it is not readable, and OSError."""
    return parse_json(read_text(path))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also if it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
