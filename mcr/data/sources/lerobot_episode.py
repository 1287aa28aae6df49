"""One episode of a LeRobotDataset: its rows in a parquet file, its frames in videos or in the rows.

The parts and the decoder of `lerobot.py` read episodes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from mcr.data import pictures
from mcr.data.episode import Episode, Origin, Pictures
from mcr.data.schema import Schema
from mcr.data.sources.columns import ParquetTable, is_numeric, to_numbers
from mcr.data.sources.lerobot_meta import Entry
from mcr.data.sources.source import DAMAGE, sentence
from mcr.data.sources.video import (
    FRAME_TOLERANCE,
    VideoReaders,
    VideoScan,
    require_rate,
    scan_video,
)
from mcr.errors import UserError

if TYPE_CHECKING:
    import pyarrow

TASK = "task"  # key of the instruction that the meta data hold


@dataclass(frozen=True)
class Layout:
    """What the parts and the decoder must know of a data set.

    cameras: name -> key
    images:  keys of cameras whose pictures lie in the parquet files
    signals: key -> name
    present: camera -> key of the flag that says whether an episode has it
    texts:   keys of texts in the parquet files
    tasks:   task_index -> instruction
    """

    root: Path
    fps: float
    schema: Schema
    cameras: dict[str, str]
    images: frozenset[str]
    signals: dict[str, str]
    present: dict[str, str]
    texts: frozenset[str]
    tasks: dict[int, str]


# --------------------------------------------------------------------------- rows


@dataclass
class Tables:
    """The parquet file that is open, and the rows of its episodes."""

    root: Path
    _name: str = ""
    _table: ParquetTable | None = None
    _rows: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def open(self, entry: Entry) -> tuple[ParquetTable, int, int]:
        """Return the file of an episode, its first row and the row behind its last.

        Raises ValueError if the file is damaged, or does not hold the rows that it should.
        """
        if entry.data != self._name or self._table is None:
            self.close()
            self._table = ParquetTable(self.root / entry.data)
            self._rows = _rows_of_episodes(self._table)
            self._name = entry.data
        runs = self._rows.get(entry.index, [])
        if len(runs) > 1:
            raise ValueError("its rows do not follow each other")
        start, stop = runs[0] if runs else (0, 0)
        if stop - start != entry.length:
            raise ValueError(f"{stop - start} rows, {entry.length} steps according to meta")
        if entry.length == 0:
            raise ValueError("the episode has no steps")
        return self._table, start, stop

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
        self._table = None


def _rows_of_episodes(table: ParquetTable) -> dict[int, list[tuple[int, int]]]:
    """Return the runs of rows of each episode, [first, behind the last)."""
    if not table.num_rows:
        return {}
    if "episode_index" not in table.names:
        raise ValueError("lacks the column episode_index")
    indices = table.read(["episode_index"], 0, table.num_rows).column(0).to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(indices)) + 1).tolist(), len(indices)]
    rows: dict[int, list[tuple[int, int]]] = {}
    for start, stop in zip(bounds, bounds[1:], strict=False):
        rows.setdefault(int(indices[start]), []).append((start, stop))
    return rows


# --------------------------------------------------------------------------- episodes


class EpisodeReader:
    """Reads episodes one after the other. file: the one that was read last, for messages"""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._tables = Tables(layout.root)
        self._scans: dict[str, VideoScan | str] = {}  # a text says why there is no scan
        self.file = ""

    def read(self, entry: Entry) -> Episode:
        """Raises ValueError if the files do not hold what the meta data promise."""
        self.file = entry.data
        table, start, stop = self._tables.open(entry)
        schema = self._layout.schema
        text_keys = (*schema.language, schema.recording.key)
        numbers = (*self._layout.signals, *self._layout.present.values(), "timestamp", "task_index")
        columns = {*numbers, *(self._layout.texts & {*text_keys})}
        rows = table.read([name for name in table.names if name in columns], start, stop)
        _require_timestamps(rows, self._layout.fps)
        signals = {
            name: _numbers(rows, key)
            for key, name in self._layout.signals.items()
            if key in table.names
        }
        texts = {key: self._text(entry, rows, key) for key in text_keys}
        path = texts[schema.recording.key]
        return Episode(
            key=str(entry.index),
            length=entry.length,
            signals=signals,
            pictures=self._pictures(entry, rows, table, start),
            texts=tuple(texts[key] for key in schema.language),
            origin=Origin.of(schema.recording, path, fallback=entry.name, split=entry.split),
        )

    def _text(self, entry: Entry, rows: pyarrow.Table, key: str) -> str:
        """Return a text as it is at the first step."""
        if key == TASK:
            if not self._layout.tasks or "task_index" not in rows.column_names:
                return entry.task
            return self._layout.tasks.get(rows.column("task_index")[0].as_py(), entry.task)
        if key in self._layout.texts and key in rows.column_names:
            return str(rows.column(key)[0].as_py() or "")
        return entry.fields.get(key, "")

    def _pictures(
        self, entry: Entry, rows: pyarrow.Table, table: ParquetTable, start: int
    ) -> dict[str, Pictures]:
        found = {}
        for camera, key in self._layout.cameras.items():
            flag = self._layout.present.get(camera)
            if flag and not _numbers(rows, flag)[0].any():
                continue
            if key in self._layout.images:
                found[camera] = _stored_pictures(table, key, start, start + entry.length)
            elif key in entry.videos:
                found[camera] = self._video(entry, key)
        return found

    def _video(self, entry: Entry, key: str) -> Pictures:
        file, start = entry.videos[key]
        if file not in self._scans:
            try:
                self._scans[file] = scan_video(self._layout.root / file)
            except ValueError as error:
                self._scans[file] = str(error)
        scan = self._scans[file]
        try:
            if isinstance(scan, str):
                raise ValueError(scan)
            scan.require(start, entry.length, self._layout.fps)
        except ValueError:
            self.file = file
            raise
        return Pictures(size=scan.size, checksum=scan.checksum)

    def close(self) -> None:
        """Close the files."""
        self._tables.close()


def _require_timestamps(rows: pyarrow.Table, fps: float) -> None:
    """Raise ValueError if a timestamp tells another frame than the one of its step."""
    if "timestamp" not in rows.column_names:
        return
    times = _numbers(rows, "timestamp").ravel()
    if not (np.abs(times - np.arange(len(times)) / fps) <= FRAME_TOLERANCE / fps).all():
        raise ValueError(f"its timestamps are not those of {fps:g} steps per second")


def _numbers(rows: pyarrow.Table, key: str) -> np.ndarray:
    """Return a column as float32 [T] or [T, D]. Raises ValueError that names it."""
    if key not in rows.column_names:
        raise ValueError(f"lacks the column {key}")
    column = rows.column(key)
    if not is_numeric(column.type):
        raise ValueError(f"{key} holds no numbers but {column.type}")
    try:
        return to_numbers(column)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _stored_pictures(table: ParquetTable, key: str, start: int, stop: int) -> Pictures:
    """Read the pictures of an episode once, for their size and checksum."""
    if key not in table.names:
        raise ValueError(f"lacks the column {key}")
    size, checksum = (0, 0), 0
    for row in range(start, stop):
        data = table.picture(key, row)
        found = pictures.size_of(data)
        if row > start and found != size:
            raise ValueError(
                f"{key} at step {row - start} has {found} (height, width), at step 0 {size}"
            )
        size, checksum = found, google_crc32c.extend(checksum, data)
    return Pictures(size=size, checksum=checksum)


# --------------------------------------------------------------------------- decoding


class LerobotDecoder:
    """Decodes pictures from videos and from rows.

    entries: key of an episode -> what the meta data say
    threads: of each video's decoder; 0 = as many as there are cores
    """

    def __init__(self, layout: Layout, entries: dict[str, Entry], threads: int = 0):
        self._layout = layout
        self._entries = entries
        self._videos = VideoReaders(threads)
        self._tables = Tables(layout.root)

    def frames(self, key: str, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """See `Decoder.frames`."""
        entry = self._entries[key]
        feature = self._layout.cameras[camera]
        is_stored = feature in self._layout.images
        file = entry.data if is_stored else entry.videos[feature][0]
        for step in steps:
            try:
                if step >= entry.length:
                    raise ValueError(f"the episode has only {entry.length} steps")
                if is_stored:
                    frame = self._stored(entry, feature, step)
                else:
                    frame = self._from_video(entry, feature, step)
            except DAMAGE as error:
                place = f"{self._layout.root / file}: {entry.name}, {camera}, step {step}"
                raise UserError(f"{place}: {sentence(error)}") from error
            yield frame

    def _from_video(self, entry: Entry, feature: str, step: int) -> np.ndarray:
        file, start = entry.videos[feature]
        video, fps = self._videos.open(self._layout.root / file), self._layout.fps
        require_rate(video.rates, fps)
        return video.frame(start + step / fps, FRAME_TOLERANCE / fps)

    def _stored(self, entry: Entry, feature: str, step: int) -> np.ndarray:
        table, start, _ = self._tables.open(entry)
        return pictures.decode(table.picture(feature, start + step))

    def close(self) -> None:
        """Close the files."""
        self._videos.close()
        self._tables.close()
