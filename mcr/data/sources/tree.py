"""The PNG/pickle tree: how an episode lies on disk, written here and read for the index.

    <root>/<name>/<camera>/{0..T-1}.png | .jpg
                  language_instruction{,_2,_3}/0.txt
                  other_data.pkl        see `other_data.py`

`extract.py` writes trees. `clean.py` judges them file by file and has a reader of its own for that.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np

from mcr.data import pictures
from mcr.data.episode import FLAGS, LANGUAGES, Episode, Origin
from mcr.data.other_data import OTHER_DATA, read_other_data, write_other_data
from mcr.data.sources.source import Columns, Contents, episode_row, stack_signals
from mcr.errors import UserError
from mcr.runs.atomic import remove

PARTIAL_PREFIX = ".partial-"  # of a folder that is being written; no reader takes it for an episode
_EPISODES_PER_PART = 64


# --------------------------------------------------------------------------- writing


def write_episode(
    root: Path,
    name: str,
    episode: Episode,
    cameras: tuple[str, ...],
    encode: Callable[[memoryview], bytes],
    suffix: str,
) -> None:
    """Write `<root>/<name>`. The folder gets its name once it is complete and on disk.

    encode: turns a stored picture into the bytes of a file with this `suffix`

    Replaces what a killed run has left. Raises OSError (disk full, ...), and ValueError that names
    camera and step if `encode` raises one. Nothing of the episode is left behind then.
    """
    partial = root / f"{PARTIAL_PREFIX}{name}"
    remove(partial)
    try:
        for camera in cameras:
            folder = partial / camera
            folder.mkdir(parents=True)
            for step in range(episode.length):
                try:
                    data = encode(episode.encoded_frame(camera, step))
                except ValueError as error:
                    raise ValueError(f"{camera} at step {step}: {error}") from error
                (folder / f"{step}{suffix}").write_bytes(data)
        for key, text in episode.languages.items():
            (partial / key).mkdir()
            (partial / key / "0.txt").write_text(text, encoding="utf-8")
        write_other_data(partial / OTHER_DATA, episode)
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
    """The root of a tree. Its parts are handfuls of episode folders."""

    kind: ClassVar = "tree"
    unit: ClassVar = "episodes"

    def __init__(self, folder: Path):
        self.root = folder
        self.shards: list[str] = []

    @staticmethod
    def recognises(folder: Path) -> bool:
        return any(_folder_names(folder))

    def cameras(self) -> list[str]:
        """The cameras of the first episode that has any. The other episodes must have them too."""
        for name in sorted(_folder_names(self.root)):
            entries = (self.root / name).iterdir()
            cameras = sorted(p.name for p in entries if p.is_dir() and "image" in p.name)
            if cameras:
                return cameras
        raise UserError(f"{self.root}: no episode has a folder of pictures (*image*)")

    def parts(self) -> list[Folders]:
        folders = [self.root / name for name in sorted(_folder_names(self.root))]
        cameras = self.cameras()
        return [
            Folders(folders[i : i + _EPISODES_PER_PART], cameras)
            for i in range(0, len(folders), _EPISODES_PER_PART)
        ]

    def is_small(self) -> bool:
        return False  # the number of parts says so already

    def stamp(self) -> dict[str, int]:
        """A checksum of the names of the episode folders."""
        names = "\n".join(sorted(_folder_names(self.root)))
        return {"episode folders": google_crc32c.value(names.encode())}


def _folder_names(root: Path) -> Iterator[str]:
    with os.scandir(root) as entries:
        yield from (e.name for e in entries if e.is_dir() and not e.name.startswith("."))


@dataclass(frozen=True)
class Folders:
    """Some episode folders of a tree, and the cameras that each must have."""

    folders: list[Path]
    cameras: list[str]

    @property
    def size(self) -> int:
        """Episodes."""
        return len(self.folders)

    def read(self) -> Contents:
        found = Contents()
        for folder in self.folders:
            try:
                row, columns, signals = _read_folder(folder, self.cameras)
            except (UserError, OSError, ValueError) as error:
                found.problems.append(f"{folder.name}: {error}")
                continue
            found.columns = found.columns or columns
            if columns != found.columns:
                found.problems.append(f"{folder.name}: signals {columns}, others {found.columns}")
                continue
            found.signals.append(signals)
            found.rows.append(row)
        return found


def _read_folder(folder: Path, cameras: list[str]) -> tuple[dict[str, Any], Columns, np.ndarray]:
    """Return an episode's row, columns and signals. Raises ValueError if frames are missing."""
    data = read_other_data(folder / OTHER_DATA)
    columns, signals = stack_signals(_signals(data))
    suffix = ""
    for camera in cameras:
        names = {path.name for path in (folder / camera).iterdir()}
        suffix = ".png" if "0.png" in names else ".jpg"
        if names != {f"{step}{suffix}" for step in range(len(signals))}:
            raise ValueError(
                f"{camera} holds {len(names)} files, not frames 0..{len(signals) - 1} as "
                f"{OTHER_DATA} says; `mcr clean` reports such episodes"
            )
    languages = {
        key: (folder / key / "0.txt").read_text(encoding="utf-8")
        for key in LANGUAGES
        if (folder / key / "0.txt").is_file()
    }
    first = (folder / cameras[0] / f"0{suffix}").read_bytes()
    row = episode_row(
        _origin(folder.name, data),
        name=folder.name,
        length=len(signals),
        languages=languages,
        shard=0,
        file_path=str(data.get("file_path", "")),
        picture=(*pictures.size_of(first), suffix),
    )
    return row, columns, signals


def _signals(data: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the signals of `other_data.pkl`. Raises ValueError if their lengths differ."""
    length = len(data.get("action", ()))
    if length == 0:
        raise ValueError(f"{OTHER_DATA} has no actions")
    signals = {}
    for key, values in data.items():
        if not isinstance(values, list) or key in FLAGS:
            continue
        if len(values) != length:
            raise ValueError(f"{OTHER_DATA} has {len(values)} rows of {key}, {length} of action")
        if isinstance(values[0], dict):
            for name in values[0]:
                signals[f"{key}/{name}"] = np.stack([np.atleast_1d(v[name]) for v in values])
        elif values[0] is not None:  # upstream writes None for what a data set lacks
            signals[key] = np.stack([np.atleast_1d(value) for value in values])
    return signals


def _origin(name: str, data: dict[str, Any]) -> Origin:
    """Parse the original path. Upstream's trees have only the folder's name, <date>_<recording>."""
    if data.get("file_path"):
        return Origin.parse(str(data["file_path"]))
    date, _, recording = name.partition("_")
    return Origin(lab="", outcome="", date=date, recording=recording or name)
