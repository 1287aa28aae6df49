"""Places where writing fails: disks without room, and folders that are read-only even for root."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """Mount something at a new folder; skip the test if that is not permitted here."""
    place.mkdir()
    try:
        done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def filled(disk: Path, left: int = 1 << 16) -> Iterator[None]:
    """Leave this many bytes on a disk while the block runs."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(disk).f_bavail * 4096 - left)
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """Let no file of this process become larger while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
