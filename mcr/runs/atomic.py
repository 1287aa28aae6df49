"""Atomic writes: a file or folder that has its final name is complete.

Everything that `mcr` writes goes through here. It is written under a temporary name beside its
destination, synced to the disk, and renamed. A process that is killed therefore leaves either the
old content or the new one, and perhaps a `.NAME.partial`, which the next write replaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path, replace_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to, and rename it `path` after the block.

    An existing file at `path` is replaced. A folder at `path` must be empty, unless
    `replace_folder`: then it is renamed to `.NAME.replaced` first and deleted afterwards. If the
    block raises, what it has written is deleted and `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)  # left by a process that was killed
    try:
        yield partial
        sync(partial)
        if replace_folder and path.is_dir():
            replaced = path.with_name(f".{path.name}.replaced")
            remove(replaced)
            path.rename(replaced)
            partial.rename(path)
            remove(replaced)
        else:
            partial.replace(path)
    finally:
        remove(partial)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


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
