"""The PNG/pickle tree: how an episode lies on disk, written here and read for the index.

    <root>/<name>/<camera>/{0..T-1}.png | .jpg
                  language_instruction{,_2,_3}/0.txt
                  other_data.pkl        see `other_data.py`

A tree may be of any robot: with cameras of its own, each in a folder with pictures of any name, and
with any signals. `tree_episode.py` reads an episode. Extraction and `mcr.write_episode` write trees.
`clean.py` judges them file by file and has a reader of its own for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import google_crc32c
import numpy as np

from mcr.data.episode import Episode, Origin, safe_name
from mcr.data.other_data import OTHER_DATA, write_other_data
from mcr.data.schema import LANGUAGES, Schema, find_schema, short_name
from mcr.data.sources.schema_check import Keys, choose_schema
from mcr.data.sources.tree_episode import EpisodeReader, camera_folders, shown
from mcr.runs.atomic import remove

PARTIAL_PREFIX = ".partial-"  # of a folder that is being written; no reader takes it for an episode
_EPISODES_PER_PART = 64
_EPISODES_LISTED = 256  # to find out which cameras there are


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
        partial.mkdir(parents=True)
        for camera, contents in pictures.items():
            folder = partial / safe_name(camera)
            folder.mkdir()
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
    """The root of a tree. Its parts are handfuls of episode folders.

    In a schema, the key of a camera is its folder. The key that the camera had in the data set
    that the tree was extracted from is understood as well.
    """

    kind: ClassVar = "tree"
    unit: ClassVar = "episodes"

    def __init__(self, path: Path, schema: Schema | None = None):
        self.path = self.root = path
        self.name = path.resolve().name
        self._names = sorted(_folder_names(path))
        folders = _list_cameras(path, self._names)
        found = _first_readable(path, self._names, schema)
        self.schema = _choose(path, self.name, schema, folders, found)
        self.cameras = dict(self.schema.cameras) or {camera: camera for camera in folders}

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and any((path / n / OTHER_DATA).exists() for n in _folder_names(path))

    def parts(self) -> list[Folders]:
        reader = EpisodeReader(self.root, self.schema, dict(self.schema.cameras))
        return [
            Folders(reader, tuple(self._names[i : i + _EPISODES_PER_PART]))
            for i in range(0, len(self._names), _EPISODES_PER_PART)
        ]

    def is_small(self) -> bool:
        return False  # the number of parts says so already

    def stamp(self) -> dict[str, int]:
        """A checksum of the names of the episode folders."""
        names = "\n".join(self._names)
        return {"episode folders": google_crc32c.value(os.fsencode(names))}

    def decoder(self) -> None:
        return None


def _folder_names(root: Path) -> Iterator[str]:
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and _is_folder(entry):
                yield entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links; reading the episode says so
        return True


def _list_cameras(root: Path, names: list[str]) -> list[str]:
    """Return the cameras of a tree, sorted, from a sample of its episodes."""
    cameras: set[str] = set()
    for name in names[:: max(1, len(names) // _EPISODES_LISTED)]:
        with contextlib.suppress(OSError, ValueError):  # reading the episode says so
            cameras |= {*camera_folders(root / name)}
    return sorted(cameras)


def _first_readable(root: Path, names: list[str], schema: Schema | None) -> Episode | None:
    reader = EpisodeReader(root, schema or Schema(), {})
    for name in names[:_EPISODES_LISTED]:
        with contextlib.suppress(OSError, ValueError):  # reading the episode says so
            return reader.read(name)
    return None


def _choose(
    root: Path, name: str, schema: Schema | None, folders: list[str], found: Episode | None
) -> Schema:
    """Return the schema of a tree, with folders as the keys of cameras.

    Raises UserError if the given schema names something that the first readable episode lacks.
    """
    signals = list(found.signals) if found else []
    wanted = schema or find_schema(name, [*folders, *signals]) or Schema()
    cameras = {
        camera: next((f for f in (key, short_name(key), camera) if f in folders), key)
        for camera, key in wanted.cameras.items()
    }
    texts = [*LANGUAGES, wanted.recording.key]
    if found is not None:
        aliases = [key for camera, key in wanted.cameras.items() if cameras[camera] in folders]
        sources = [key for key in wanted.signals if short_name(key) in signals]
        keys = Keys(
            [*folders, *aliases],
            [*signals, *sources, *wanted.present.values()],
            [*texts, *wanted.language],
            wanted.splits,
        )
        wanted = choose_schema(root, name, schema, keys)
    languages = tuple(key for key in wanted.language if key not in LANGUAGES and "/" not in key)
    known = [key for key in languages if found and (root / found.key / key / "0.txt").is_file()]
    return replace(
        wanted,
        cameras={camera: cameras[camera] for camera in wanted.cameras},
        present={},
        language=tuple(known) or LANGUAGES,
    )


@dataclass(frozen=True)
class Folders:
    """Some episode folders of a tree."""

    reader: EpisodeReader
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Episodes."""
        return len(self.names)

    def episodes(self) -> Iterator[Episode | str]:
        for name in self.names:
            try:
                episode = self.reader.read(name)
            except (OSError, ValueError) as error:
                yield f"{shown(str(self.reader.root / name))}: {error}"
                continue
            splits = self.reader.schema.splits
            if not splits or (episode.origin.split or "train") in splits:
                yield episode
