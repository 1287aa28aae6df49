"""LeRobotDataset, v2.0, v2.1 and v3.0: parquet files with one row per step, and videos.

    meta/                 which episodes there are, and where; see `lerobot_meta.py`
    data/**/*.parquet     numbers, texts and, of image features, the PNG or JPEG bytes; rows of one
                          episode (v2) or of many (v3)
    videos/**/*.mp4       of one episode and camera (v2), or of many episodes of one camera (v3)

Pictures are not addressable, so they have a decoder. Needs the extra `lerobot` (pyarrow, PyAV), but
not the package lerobot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import google_crc32c

from mcr.data.episode import Episode
from mcr.data.regular_files import status
from mcr.data.schema import LANGUAGES, Schema, is_large, names_of
from mcr.data.sources.columns import is_bookkeeping
from mcr.data.sources.lerobot_episode import TASK, EpisodeReader, Layout, LerobotDecoder
from mcr.data.sources.lerobot_meta import Entry, Meta
from mcr.data.sources.schema_check import Keys, choose_schema
from mcr.data.sources.source import DAMAGE, WORTH_PROCESSES, sentence
from mcr.errors import UserError

_EPISODES_PER_PART = 32


class LerobotSource:
    """A LeRobotDataset. Its parts are episodes whose rows lie in one parquet file, or near it."""

    kind: ClassVar = "lerobot"
    unit: ClassVar = "episodes"

    def __init__(self, path: Path, schema: Schema | None = None):
        self.path = self.root = path
        self.name = path.resolve().name
        _require_info(path)
        meta = Meta.read(path)
        keys = Keys(
            cameras=(*_downloaded(path, meta), *meta.images),
            signals=tuple(meta.numbers),
            texts=(TASK, *meta.texts, *(meta.entries[0].fields if meta.entries else ())),
            splits=tuple(meta.splits),
        )
        schema = choose_schema(path, self.name, schema, keys)
        named = tuple(key for key in LANGUAGES if key in meta.texts)
        self.schema = replace(
            schema, hz=schema.hz or meta.fps, language=schema.language or named or (TASK,)
        )
        self.cameras = dict(schema.cameras) or {n: k for k, n in names_of(keys.cameras).items()}
        self._num_listed, self._num_stated = len(meta.entries), meta.num_episodes
        self._entries = [e for e in meta.entries if not schema.splits or e.split in schema.splits]
        self._layout = Layout(
            root=path,
            fps=meta.fps,
            schema=self.schema,
            cameras=self.cameras,
            images=frozenset(meta.images),
            signals=_signals(meta, self.schema),
            present=_flags(meta, self.schema),
            texts=frozenset(meta.texts),
            tasks=meta.tasks,
        )

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "meta" / "info.json").is_file() or _lacks_info(path)

    def parts(self) -> list[Episodes]:
        parts: list[list[Entry]] = []
        for entry in self._entries:
            if not parts or len(parts[-1]) == _EPISODES_PER_PART or _are_apart(parts[-1], entry):
                parts.append([])
            parts[-1].append(entry)
        return [Episodes(self._layout, tuple(part)) for part in parts]

    def lacks(self) -> list[str]:
        listed, stated = self._num_listed, self._num_stated
        if stated in (None, listed):
            return []
        return [f"meta/info.json states {stated} episodes, of which {listed} are listed"]

    def is_small(self) -> bool:
        return self.stamp()["bytes"] < WORTH_PROCESSES

    def stamp(self) -> dict[str, int]:
        """A checksum of the names and sizes of all files, and the bytes in them."""
        checksum, total = 0, 0
        for name, size in sorted(_files(self.root)):
            checksum = google_crc32c.extend(checksum, os.fsencode(f"{name} {size}\n"))
            total += size
        return {"files": checksum, "bytes": total}

    def decoder(self, threads: int = 0) -> LerobotDecoder:
        """threads: of each video's decoder; 0 = as many as there are cores"""
        return LerobotDecoder(self._layout, {str(e.index): e for e in self._entries}, threads)


def _lacks_info(path: Path) -> bool:
    """Does a folder look like a LeRobotDataset without the file that describes it?

    Its videos would be read without the numbers, as plain ones.
    """
    has_meta, has_videos = (path / "meta").is_dir(), (path / "videos").is_dir()
    rows = (path / "data").glob("**/*.parquet" if has_meta else "chunk-*/*.parquet")
    return (has_meta and has_videos) or ((has_meta or has_videos) and any(rows))


def _require_info(path: Path) -> None:
    info = path / "meta" / "info.json"
    if info.is_file():
        return
    what = "is no regular file" if os.path.lexists(info) else "is missing"
    raise UserError(
        f"{info}: {what}, and without it this LeRobot data set cannot be read: download the folder "
        f"meta again, whole. To read its videos without states and actions, give {path / 'videos'}"
    )


def _downloaded(root: Path, meta: Meta) -> list[str]:
    """Return the cameras of which there is a video. Often only some are downloaded.

    Raises UserError if the data set has no pictures.
    """
    files = {
        key: [e.videos[key][0] for e in meta.entries if key in e.videos] for key in meta.videos
    }
    found = [key for key in meta.videos if any((root / file).is_file() for file in files[key])]
    if not found and not meta.images:
        missing = next((f"; {root / names[0]} is missing" for names in files.values() if names), "")
        raise UserError(f"{root}: the data set has no pictures{missing}")
    return found


def _signals(meta: Meta, schema: Schema) -> dict[str, str]:
    """Return key -> name of the numbers that are read as signals."""
    wanted = {*schema.signals, *schema.state, *schema.action}
    names = names_of(meta.numbers)
    return {
        key: name
        for key, name in names.items()
        if wanted & {key, name} or not (is_bookkeeping(key) or is_large(meta.numbers[key]))
    }


def _flags(meta: Meta, schema: Schema) -> dict[str, str]:
    """Return camera -> key of the flag that says whether an episode has it."""
    keys = {name: key for key, name in names_of(meta.numbers).items()}
    return {camera: keys.get(key, key) for camera, key in schema.present.items()}


def _are_apart(part: list[Entry], entry: Entry) -> bool:
    """Does the parquet file of `part` hold several episodes, but not `entry`?"""
    return len({e.data for e in part}) < len(part) and entry.data != part[-1].data


def _files(root: Path) -> Iterator[tuple[str, int]]:
    """Yield (path relative to the data set, size) of the files in meta, data and videos."""
    for part in ("meta", "data", "videos"):
        for folder, _, names in os.walk(root / part):
            for name in names:
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), status(path).st_size


@dataclass(frozen=True)
class Episodes:
    """Some episodes of a data set that follow each other."""

    layout: Layout
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Episodes."""
        return len(self.entries)

    def pieces(self) -> list[tuple[str, Episodes]]:
        return [(entry.name, replace(self, entries=(entry,))) for entry in self.entries]

    def episodes(self) -> Iterator[Episode | str]:
        with contextlib.closing(EpisodeReader(self.layout)) as reader:
            for entry in self.entries:
                try:
                    yield reader.read(entry)
                except DAMAGE as error:
                    yield f"{reader.file}: {entry.name}: {sentence(error)}"
