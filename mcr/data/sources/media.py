"""Files: videos, or folders of pictures, with or without a table of states and actions.

    one video                     an episode with the camera "video"
    a folder of videos            each is such an episode, in natural order, 2 before 10
    a folder of pictures          each folder with PNG or JPEG files in it is an episode with the
                                  camera "picture"; the files in natural order are its steps
    run.csv, run.parquet          beside run.mp4 or the folder run/: its states, actions and text
    signals.csv, signals.parquet  in a folder: the folder is one episode. Its cameras are the videos
                                  and the folders of pictures in it, by their names

A folder that has videos and, elsewhere, pictures is read as videos. A table has a row per frame and
these columns; without one an episode has no signals.

    action_0, action_1, ...       become the signal `action`; so do action.0, action_x, ...
    state_...                     become the signal `state`; any other name_0, name_1, ... `name`
    text, task, language_instruction   the instruction, in the first row

Needs the extra `video` for videos, and `lerobot` for parquet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import google_crc32c
import numpy as np

from mcr.data import pictures
from mcr.data.episode import Episode, Origin, Pictures
from mcr.data.hdf5 import natural_order
from mcr.data.regular_files import read_bytes, status
from mcr.data.schema import LANGUAGES, Schema, is_large, names_of, short_name
from mcr.data.sources import video
from mcr.data.sources.columns import is_bookkeeping, join_columns, joined_name, read_table
from mcr.data.sources.media_files import (
    PICTURE_SUFFIXES,
    Recording,
    find_recordings,
    is_medium,
    is_picture,
    is_table,
    is_video,
    walk,
)
from mcr.data.sources.schema_check import Keys, choose_schema
from mcr.data.sources.source import DAMAGE, sentence
from mcr.errors import UserError

_TEXTS = (*LANGUAGES, "text", "task")
_EPISODES_PER_PART = 16
_SMALL_BYTES, _SMALL_PICTURES = 2**28, 5_000  # less is indexed sooner than processes start
_EXACT_S = 1e-4  # frames are wanted at the very times that the scan of the video found


class MediaSource:
    """Videos or folders of pictures. Its parts are some episodes each."""

    kind: ClassVar = "media"
    unit: ClassVar = "episodes"

    def __init__(self, path: Path, schema: Schema | None = None):
        self.path = path
        self.root = path.parent if path.is_file() else path
        self.name = path.resolve().stem if path.is_file() else path.resolve().name
        self._recordings = find_recordings(path)
        if not self._recordings:
            suffixes = ", ".join((*video.SUFFIXES, *PICTURE_SUFFIXES))
            raise UserError(f"{path}: holds no videos and no pictures ({suffixes})")
        cameras = list(dict.fromkeys(c for r in self._recordings for c in r.cameras))
        signals, texts = _columns(self.root, self._recordings)
        schema = choose_schema(path, self.name, schema, Keys(cameras, signals, texts))
        named = tuple(key for key in _TEXTS if key in texts)[: len(LANGUAGES)]
        self.schema = replace(
            schema, hz=schema.hz or self._rate(), language=schema.language or named
        )
        self.cameras = dict(schema.cameras) or {camera: camera for camera in cameras}

    @staticmethod
    def recognises(path: Path) -> bool:
        if path.is_file():
            return is_video(path.name)
        return any(is_medium(name) for _, names in walk(path) for name in names)

    def _videos(self) -> Iterator[Path]:
        for recording in self._recordings:
            yield from (self.root / f for f in recording.cameras.values() if is_video(f))

    def _rate(self) -> float:
        """Return the frames per second of the first readable video; 0 if there is none."""
        for path in self._videos():
            with contextlib.suppress(*DAMAGE):  # reading the episodes names a damaged video
                reader = video.VideoReader(path)
                reader.close()
                return reader.rates[0] if reader.rates else 0.0
        return 0.0

    def parts(self) -> list[Recordings]:
        groups = (
            tuple(self._recordings[i : i + _EPISODES_PER_PART])
            for i in range(0, len(self._recordings), _EPISODES_PER_PART)
        )
        return [Recordings(self.root, self.schema, self.cameras, group) for group in groups]

    def is_small(self) -> bool:
        stamp = self.stamp()
        return stamp["bytes"] < _SMALL_BYTES and stamp["pictures"] < _SMALL_PICTURES

    def stamp(self) -> dict[str, int]:
        """Names, sizes and times of all files, and how much there is."""
        checksum = num_bytes = num_pictures = 0
        for folder, names in walk(self.path):
            for name in names:
                if not (is_video(name) or is_table(name) or is_picture(name)):
                    continue
                about = status(self.root / folder / name)
                if is_picture(name):
                    num_pictures += 1
                else:
                    num_bytes += about.st_size
                line = os.fsencode(f"{folder} {name} {about.st_size} {about.st_mtime_ns}\n")
                checksum = google_crc32c.extend(checksum, line)
        return {"files": checksum, "bytes": num_bytes, "pictures": num_pictures}

    def lacks(self) -> list[str]:
        return []

    def decoder(self, threads: int = 0) -> MediaDecoder | None:
        """threads: of each video's decoder; 0 = as many as there are cores"""
        if not any(self._videos()):
            return None
        return MediaDecoder(self.root, self.cameras, {r.key: r for r in self._recordings}, threads)


def _columns(root: Path, recordings: list[Recording]) -> tuple[list[str], list[str]]:
    """Return the keys of signals and of texts in the first readable table."""
    for recording in recordings:
        if len(recording.tables) == 1:
            with contextlib.suppress(*DAMAGE):  # reading the episodes names it
                numbers, texts = read_table(root / recording.tables[0])
                return list(join_columns(numbers)), list(texts)
    return [], []


# --------------------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Recordings:
    """Some episodes. cameras: name -> name of the file or folder"""

    root: Path
    schema: Schema
    cameras: dict[str, str]
    recordings: tuple[Recording, ...]

    @property
    def size(self) -> int:
        """Episodes."""
        return len(self.recordings)

    def pieces(self) -> list[tuple[str, Recordings]]:
        return [(each.key, replace(self, recordings=(each,))) for each in self.recordings]

    def episodes(self) -> Iterator[Episode | str]:
        for recording in self.recordings:
            try:
                yield self._episode(recording)
            except DAMAGE as error:
                yield f"{recording.key}: {sentence(error)}"

    def _episode(self, recording: Recording) -> Episode:
        """Raises ValueError if the files of an episode are damaged, or do not fit each other."""
        table, numbers, texts = self._table(recording)
        signals = self._signals(numbers)
        found, lengths = {}, {}
        if numbers:
            lengths[table] = len(next(iter(numbers.values())))
        for camera, key in self.cameras.items():
            place = recording.cameras.get(key)
            if place is not None and self._is_present(camera, numbers):
                found[camera], lengths[place] = self._pictures(place)
        if not found:
            raise ValueError("holds no videos and no pictures")
        if len(set(lengths.values())) > 1:
            raise ValueError(
                "has different lengths: "
                + ", ".join(f"{length} in {place}" for place, length in lengths.items())
            )
        recorded = self.schema.recording
        path = texts.get(recorded.key, "") if recorded.key else recording.key
        return Episode(
            key=recording.key,
            length=next(iter(lengths.values())),
            signals=signals,
            pictures=found,
            texts=tuple(texts.get(key, "") for key in self.schema.language),
            origin=Origin.of(recorded, path, fallback=recording.name),
        )

    def _table(self, recording: Recording) -> tuple[str, dict[str, np.ndarray], dict[str, str]]:
        """Return the path of the table, its signals by their keys, and its texts."""
        if not recording.tables:
            return "", {}, {}
        if len(recording.tables) > 1:
            raise ValueError(f"has the tables {' and '.join(recording.tables)}; keep one")
        (table,) = recording.tables
        try:
            columns, texts = read_table(self.root / table)
            numbers = join_columns(columns)
            for key, text in texts.items():
                if joined_name(key) in numbers:
                    raise ValueError(f"the column {key} holds texts such as {text!r}, not numbers")
        except ValueError as error:
            raise ValueError(f"{table}: {error}") from error
        return table, numbers, texts

    def _is_present(self, camera: str, numbers: dict[str, np.ndarray]) -> bool:
        """Does the table say that the episode has a camera? It has if no flag is known."""
        flag = self.schema.present.get(camera)
        keys = [key for key in numbers if flag in (key, short_name(key))]
        return not keys or bool(numbers[keys[0]][:1].any())

    def _signals(self, numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = {*self.schema.signals, *self.schema.state, *self.schema.action}
        signals = {}
        for key, name in names_of(numbers).items():
            size = numbers[key].size // max(1, len(numbers[key]))
            if wanted & {key, name} or not (is_bookkeeping(key) or is_large(size)):
                signals[name] = numbers[key]
        return signals

    def _pictures(self, place: str) -> tuple[Pictures, int]:
        """Return the pictures of a camera and how many there are."""
        if not is_video(place):
            return _read_folder(self.root, place)
        try:
            scan = video.scan_video(self.root / place)
            if scan.problem:
                raise ValueError(scan.problem)
        except ValueError as error:
            raise ValueError(f"{Path(place).name}: {error}") from error
        return Pictures(size=scan.size, checksum=scan.checksum), len(scan.times)


def _picture_names(folder: Path) -> list[str]:
    names = (name for name in os.listdir(folder) if is_picture(name) and name[0] != ".")
    return sorted(names, key=natural_order)


def _read_folder(root: Path, folder: str) -> tuple[Pictures, int]:
    """Read the pictures in a folder once, for their size and checksum."""
    names = _picture_names(root / folder)
    size, checksum = (0, 0), 0
    for name in names:
        path = root / folder / name
        try:
            data = read_bytes(path)
            found = pictures.size_of(data)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if name != names[0] and found != size:
            raise ValueError(f"{name} has {found} (height, width), {names[0]} has {size}")
        size, checksum = found, google_crc32c.extend(checksum, data)
    return Pictures(size, checksum, file=folder, names=tuple(names)), len(names)


# --------------------------------------------------------------------------- decoding


class MediaDecoder:
    """Decodes videos, and pictures of data sets that have both.

    recordings: key of an episode -> its files
    threads:    of each video's decoder; 0 = as many as there are cores
    """

    def __init__(
        self,
        root: Path,
        cameras: dict[str, str],
        recordings: dict[str, Recording],
        threads: int = 0,
    ):
        self._root = root
        self._cameras = cameras
        self._recordings = recordings
        self._videos = video.VideoReaders(threads)

    def frames(self, key: str, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """See `Decoder.frames`."""
        place = self._recordings[key].cameras[self._cameras[camera]]
        for step in steps:
            try:
                frame = self._frame(place, step)
            except DAMAGE as error:
                problem = f"episode {key}, {camera}, step {step}: {sentence(error)}"
                raise UserError(f"{self._root / place}: {problem}") from error
            yield frame

    def _frame(self, place: str, step: int) -> np.ndarray:
        if is_video(place):
            reader = self._videos.open(self._root / place)
            return reader.frame(float(reader.times[step]), _EXACT_S)
        names = _picture_names(self._root / place)
        return pictures.decode(read_bytes(self._root / place / names[step]))

    def close(self) -> None:
        """Close the videos."""
        self._videos.close()
