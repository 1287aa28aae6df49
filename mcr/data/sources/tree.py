"""The PNG/pickle tree: a folder per episode, a folder per camera in it, a file per frame.

    <root>/<episode>/<camera>/{0..T-1}.png | .jpg | .jpeg      see `order_frames` for other names
                     language_instruction{,_2,_3}/0.txt        optional
                     other_data.pkl                            signals, see `other_data.py`

`tree_episode.py` reads an episode, of any robot: it hands out the cameras and signals that it has,
so an odd one costs only itself. `tree_writing.py` writes trees. `clean.py` judges them by file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import google_crc32c

from mcr.data.episode import Episode
from mcr.data.other_data import OTHER_DATA
from mcr.data.regular_files import shown
from mcr.data.schema import LANGUAGES, Schema, find_schema, short_name
from mcr.data.sources.schema_check import Keys, choose_schema
from mcr.data.sources.source import DAMAGE, sentence
from mcr.data.sources.tree_episode import EpisodeReader, camera_folders

_EPISODES_PER_PART = 64
_LOOKED_AT = 1000  # folders in which a pickle is looked for
_EPISODES_STAMPED = 200  # whose files are looked at when a tree is opened
_EPISODES_LISTED = 256  # to find out which cameras there are


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
        if not path.is_dir():
            return False
        looked_at = itertools.islice(_folder_names(path), _LOOKED_AT)
        return any((path / name / OTHER_DATA).exists() for name in looked_at)

    def parts(self) -> list[Folders]:
        reader = EpisodeReader(self.root, self.schema, dict(self.schema.cameras))
        return [
            Folders(reader, tuple(self._names[i : i + _EPISODES_PER_PART]))
            for i in range(0, len(self._names), _EPISODES_PER_PART)
        ]

    def is_small(self) -> bool:
        return False  # the number of parts says so already

    def stamp(self) -> dict[str, int]:
        """A checksum of the names of the episode folders, and one of the files in some of them.

        The files of a large tree are too many to look at whenever it is opened. Pictures that are
        rendered anew are noticed, because that changes nearly all episodes.
        """
        names = "\n".join(self._names)
        stride = -(-len(self._names) // _EPISODES_STAMPED) or 1
        return {
            "episode folders": google_crc32c.value(os.fsencode(names)),
            "files": _stamp_files([self.root / name for name in self._names[::stride]]),
        }

    def lacks(self) -> list[str]:
        return []

    def decoder(self) -> None:
        return None


def _stamp_files(folders: list[Path]) -> int:
    """Return a checksum of names, sizes and times of all files in some folders."""
    checksum = 0
    for folder in folders:
        for place, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                about = os.stat(os.path.join(place, name), follow_symlinks=False)
                line = (
                    f"{os.path.relpath(place, folder)} {name} {about.st_size} {about.st_mtime_ns}\n"
                )
                checksum = google_crc32c.extend(checksum, os.fsencode(line))
    return checksum


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
        with contextlib.suppress(*DAMAGE):  # reading the episode says so
            cameras |= {*camera_folders(root / name)}
    return sorted(cameras)


def _first_readable(root: Path, names: list[str], schema: Schema | None) -> Episode | None:
    reader = EpisodeReader(root, schema or Schema(), {})
    for name in names[:_EPISODES_LISTED]:
        with contextlib.suppress(*DAMAGE):  # reading the episode says so
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

    def pieces(self) -> list[tuple[str, Folders]]:
        return [(str(self.reader.root / name), replace(self, names=(name,))) for name in self.names]

    def episodes(self) -> Iterator[Episode | str]:
        for name in self.names:
            try:
                episode = self.reader.read(name)
            except DAMAGE as error:
                yield f"{shown(str(self.reader.root / name))}: {sentence(error)}"
                continue
            splits = self.reader.schema.splits
            if not splits or (episode.origin.split or "train") in splits:
                yield episode
