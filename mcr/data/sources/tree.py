"""The PNG/pickle tree: how an episode lies on disk, written here and read for the index.

    <root>/<name>/<camera>/{0..T-1}.png | .jpg
                  language_instruction{,_2,_3}/0.txt
                  other_data.pkl        see `other_data.py`

`extract.py` writes trees. `clean.py` judges them file by file and has a reader of its own for that.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import google_crc32c
import numpy as np

from mcr.data.episode import Origin, safe_name
from mcr.data.other_data import OTHER_DATA, write_other_data
from mcr.data.schema import Schema
from mcr.runs.atomic import remove

PARTIAL_PREFIX = ".partial-"  # of a folder that is being written; no reader takes it for an episode


# --------------------------------------------------------------------------- writing


def write_episode_folder(
    root: Path,
    name: str,
    pictures: Mapping[str, Iterable[bytes]],
    suffix: str,
    texts: Mapping[str, str],
    signals: Mapping[str, np.ndarray],
    origin: Origin,
) -> None:
    """Write `<root>/<name>`. The folder gets its name once it is complete and on disk.

    pictures: camera -> the content of its files, which have this `suffix`
    texts:    name of its folder -> instruction

    Replaces what a killed run has left. Raises OSError (disk full, ...), and ValueError that names
    camera and step if `pictures` raises one. Nothing of the episode is left behind then.
    """
    partial = root / f"{PARTIAL_PREFIX}{name}"
    remove(partial)
    try:
        for camera, contents in pictures.items():
            folder = partial / safe_name(camera)
            folder.mkdir(parents=True)
            step = 0
            try:
                for data in contents:
                    (folder / f"{step}{suffix}").write_bytes(data)
                    step += 1
            except ValueError as error:
                raise ValueError(f"{camera} at step {step}: {error}") from error
        for key, text in texts.items():
            (partial / key).mkdir()
            (partial / key / "0.txt").write_text(text, encoding="utf-8")
        write_other_data(partial / OTHER_DATA, signals, origin)
        _sync_file_system(partial)
        partial.rename(root / name)
    finally:
        remove(partial)


def _sync_file_system(folder: Path) -> None:
    """Bring the file system of `folder` to the disk.

    This is one `syncfs` instead of one `fsync` per picture, as in `runs/atomic.py`. Those cost a
    fifth of the CPU time of an extraction, and on spinning disks most of its wall time.
    """
    if _syncfs is None:
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _syncfs(handle) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
    finally:
        os.close(handle)


_syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)  # Linux; Python has no name


# --------------------------------------------------------------------------- reading


class TreeSource:
    """The root of a tree."""

    kind: ClassVar = "tree"
    unit: ClassVar = "episodes"

    def __init__(self, path: Path, schema: Schema | None = None):
        self.path = self.root = path
        self.name = path.name
        self.schema = schema or Schema()
        self.cameras: dict[str, str] = {}

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and any(_folder_names(path))

    def parts(self) -> list:
        return []

    def is_small(self) -> bool:
        return False

    def stamp(self) -> dict[str, int]:
        """A checksum of the names of the episode folders."""
        names = "\n".join(sorted(_folder_names(self.root)))
        return {"episode folders": google_crc32c.value(names.encode())}

    def decoder(self) -> None:
        return None


def _folder_names(root: Path) -> Iterator[str]:
    with os.scandir(root) as entries:
        yield from (e.name for e in entries if e.is_dir() and not e.name.startswith("."))
