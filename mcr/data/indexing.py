"""Indexing: read a data set once, in parallel, and write the folder that `index.py` opens.

Whether an episode is fit for training is a filter of the recipe (`selection.py`), not a property of
the index. An episode that cannot be read at all is left out and listed under "problems".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
import pandas as pd

from mcr.data.episode import FLAGS, Episode, Origin, Pictures, unique_names
from mcr.data.regular_files import shown
from mcr.data.schema import LANGUAGES
from mcr.data.sources.source import Part, Source, sentence
from mcr.errors import UserError
from mcr.runs.atomic import atomic_path
from mcr.runs.processes import KILLED, Pool, ordered_map, progress_bar

FORMAT = "mcr-index-3"

Layout = tuple[tuple[str, int], ...]  # (signal, number of its columns), in the order of the columns


def write_index(source: Source, path: Path, workers: int = 0, executor: str = "local") -> None:
    """Write the index of `source` to the folder `path`, whole or not at all.

    workers, executor: as for `ordered_map`; small data is read in this process
    Memory: one episode per worker, and 3 to 4 KB per row.

    Raises UserError if no episode can be used, or if `path` cannot be written.
    """
    if executor == "local" and source.is_small():
        workers = 1
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(atomic_path(path, replace_folder=True))
            folder.mkdir()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; choose a place with data.index=") from error
        steps = StepFiles(folder, list(source.cameras))
        problems: list[str] = []
        for content in _read(source, workers, executor):
            problems += content.problems
            for row in content.rows:
                steps.append(row)
        rows, remarks = steps.finish(problems)
        if not rows:
            shown = "".join(f"\n  {problem}" for problem in problems[:5])
            raise UserError(f"{source.root}: no usable episode{shown}")
        names = unique_names([row.origin for row in rows])
        order = sorted(range(len(rows)), key=lambda position: names[position])
        rows, names = [rows[i] for i in order], [names[i] for i in order]
        _write_rows(folder, rows, names, steps)
        columns = _columns(rows[0].layout)
        signals_fingerprint = _signals_fingerprint(rows, names)
        info = {
            "format": FORMAT,
            "kind": source.kind,
            "name": source.name,
            "source": _relative(source.path, path),
            "schema": source.schema.as_dict(),
            "signals_fingerprint": signals_fingerprint,
            "fingerprint": _fingerprint(signals_fingerprint, rows),
            "episodes": len(rows),
            "total_steps": steps.total,
            "cameras": steps.cameras,
            "addressable": steps.is_addressable,
            "columns": columns,
            "num_signals": sum(width for _, width in rows[0].layout),
            "languages": min(len(source.schema.language), len(LANGUAGES)),
            "stamp": source.stamp(),
            "problems": problems,
            "remarks": [*source.lacks(), *remarks],
        }
        (folder / "index.json").write_text(json.dumps(info, indent=1), encoding="utf-8")


def _relative(source: Path, index: Path) -> str:
    """Return where the data is, seen from the index if both lie in one folder, else absolutely.

    So a data set can be moved together with its index. A link to a file keeps its own name, which
    is the one in the index's list of files; the file that it leads to may have another name.
    """
    source = source.resolve() if source.is_dir() else source.parent.resolve() / source.name
    index = index.resolve()
    return os.path.relpath(source, index) if source.parent == index.parent else str(source)


# --------------------------------------------------------------------------- reading


@dataclass
class Row:
    """One usable episode on its way into the index.

    signals:  float32 [T, D], laid out as `layout` says; emptied once they are written
    crc:      of the signals
    start:    its first step in the arrays
    """

    key: str
    length: int
    texts: tuple[str, ...]
    origin: Origin
    layout: Layout
    signals: np.ndarray
    crc: int
    pictures: dict[str, Pictures]
    start: int = -1


@dataclass
class Contents:
    """What the index keeps of one part. problems: a sentence per episode that is left out."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _read(source: Source, workers: int, executor: str) -> Iterator[Contents]:
    """Yield the contents of the parts in order, with a progress bar."""
    parts = source.parts()
    with progress_bar(None, "index", source.unit, sum(part.size for part in parts)) as bar:
        bar.unit_scale = True
        contents = ordered_map(_read_part, parts, workers, executor, _read_lost_part)
        for part, content in zip(parts, contents, strict=True):
            bar.update(part.size)
            yield content


def _read_part(part: Part) -> Contents:
    found = Contents()
    for episode in part.episodes():
        if isinstance(episode, str):
            found.problems.append(shown(episode))
            continue
        try:
            found.rows.append(_row(episode))
        except (MemoryError, ValueError) as error:
            problem = f"{episode.origin.name} ({episode.key}): {sentence(error)}"
            found.problems.append(shown(problem))
        del episode  # before the next one is read: a long episode is over 100 MB
    return found


def _read_lost_part(pool: Pool, part: Part) -> Contents:
    """Read a part that killed its process, without the episodes that do so."""
    found = Contents()
    pieces = part.pieces()
    results = pool.one_by_one(_read_part, [piece for _, piece in pieces])
    for (name, _), (is_done, content) in zip(pieces, results, strict=True):
        if is_done:
            found.rows += content.rows
            found.problems += content.problems
        else:
            found.problems.append(shown(f"{name}: {KILLED}"))
    return found


def _row(episode: Episode) -> Row:
    if episode.length == 0:
        raise ValueError("the episode has no steps")
    _require_texts(episode)
    layout, signals = stack_signals(episode.signals, episode.length)
    for camera, pictures in episode.pictures.items():
        places = pictures.names if pictures.names is not None else pictures.offsets
        if places is not None and len(places) != episode.length:
            raise ValueError(f"{camera} has {len(places)} frames, the signals {episode.length}")
    if not episode.pictures:
        raise ValueError("the episode has no pictures")
    return Row(
        episode.key,
        episode.length,
        tuple(" ".join(text.split()) for text in episode.texts),
        episode.origin,
        layout,
        signals,
        google_crc32c.value(signals.tobytes()),
        episode.pictures,
    )


def _require_texts(episode: Episode) -> None:
    """Raise ValueError for texts that the table of episodes cannot hold."""
    about = vars(episode.origin).values()
    names = [n for pictures in episode.pictures.values() for n in pictures.names or ()]
    for text in (episode.key, *episode.texts, *about, *episode.signals, *names):
        if "\0" in text or shown(text) != text:
            raise ValueError(f"it holds the text {shown(text)[:80]!r}, which is no Unicode")


def stack_signals(signals: dict[str, np.ndarray], length: int) -> tuple[Layout, np.ndarray]:
    """Return the layout, and all signals side by side, sorted by name, as float32 [T, D].

    Flags are left out. Raises ValueError for a NaN, an infinite value and a wrong length.
    """
    layout, arrays = [], [np.zeros((length, 0), np.float32)]
    for key in sorted(key for key in signals if key not in FLAGS):
        array = np.asarray(signals[key], np.float32)
        if len(array) != length:
            raise ValueError(f"{key} has {len(array)} steps, the episode {length}")
        array = array.reshape(length, -1)
        if not np.isfinite(array).all():
            step = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise ValueError(f"{key} is not finite at step {step}")
        layout.append((key, array.shape[1]))
        arrays.append(array)
    return tuple(layout), np.concatenate(arrays, axis=1)


def _columns(layout: Layout) -> dict[str, tuple[int, int]]:
    columns, position = {}, 0
    for name, width in layout:
        columns[name] = (position, position + width)
        position += width
    return columns


# --------------------------------------------------------------------------- arrays of all steps


class StepFiles:
    """Writes the arrays of all steps, episode by episode.

    cameras:  all cameras that were met, in the order of their files
    files:    files and folders that hold frames, in the order of their numbers
    total:    number of steps
    """

    def __init__(self, folder: Path, cameras: list[str]):
        self._folder = folder
        self.cameras = cameras
        self.files: dict[str, int] = {}
        self.total = 0
        self.is_addressable = True
        self._rows: list[Row] = []
        self._signals = (folder / "signals.f32").open("wb")
        self._names: BinaryIO | None = None
        self._places: dict[str, tuple[BinaryIO, BinaryIO]] = {}

    def append(self, row: Row) -> None:
        """Write the arrays of an episode."""
        row.start = self.total
        self._signals.write(row.signals.tobytes())
        row.signals = row.signals[:0]
        for camera, pictures in row.pictures.items():
            if camera not in self.cameras:
                self.cameras.append(camera)
            if pictures.names is not None:
                pictures = self._write_names(pictures)
            if pictures.offsets is None:
                self.is_addressable = False
            else:
                self._write_places(camera, pictures)
            # What stays in memory of each episode: no array.
            row.pictures[camera] = replace(pictures, offsets=None, lengths=None, names=None)
        self.total += row.length
        self._rows.append(row)

    def _write_names(self, pictures: Pictures) -> Pictures:
        """Write the names of the frames' files. Their places are those of the names."""
        if self._names is None:
            self._names = (self._folder / "frame_names.bin").open("wb")
        begin, names = self._names.tell(), [name.encode() for name in pictures.names or ()]
        self._names.write(b"".join(names))
        lengths = np.array([len(name) for name in names], np.int64)
        return replace(pictures, offsets=begin + np.cumsum(lengths) - lengths, lengths=lengths)

    def _write_places(self, camera: str, pictures: Pictures) -> None:
        assert pictures.offsets is not None and pictures.lengths is not None
        self.files.setdefault(pictures.file, len(self.files))
        if camera not in self._places:
            paths = place_files(self._folder, self.cameras.index(camera))
            self._places[camera] = paths[0].open("wb"), paths[1].open("wb")
        for file, array, dtype in zip(
            self._places[camera], (pictures.offsets, pictures.lengths), PLACE_DTYPES, strict=True
        ):
            file.seek(self.total * dtype.itemsize)  # leaves a hole where the camera was absent
            file.write(array.astype(dtype).tobytes())

    def finish(self, problems: list[str]) -> tuple[list[Row], list[str]]:
        """Close the files. Return the rows to keep, and remarks.

        Signals that at least half of the episodes have make up the data set. An episode that lacks
        one of them is added to `problems`, and further signals of an episode are dropped.
        """
        self._signals.close()
        if self._names is not None:
            self._names.close()
        for files in self._places.values():
            for file, dtype in zip(files, PLACE_DTYPES, strict=True):
                file.truncate(self.total * dtype.itemsize)
                file.close()
        used = {camera for row in self._rows for camera in row.pictures}
        if unused := [camera for camera in self.cameras if camera not in used]:
            self._drop_cameras(unused)
        layouts = Counter(row.layout for row in self._rows)
        if len(layouts) < 2:
            return self._rows, []
        return self._agree(layouts, problems)

    def _drop_cameras(self, unused: list[str]) -> None:
        """Forget cameras that no episode has, and number the files of the others anew."""
        kept = [camera for camera in self.cameras if camera not in unused]
        for camera in self._places:
            old = place_files(self._folder, self.cameras.index(camera))
            new = place_files(self._folder, kept.index(camera))
            for before, after in zip(old, new, strict=True):
                before.rename(after)
        self.cameras = kept

    def _agree(self, layouts: Counter[Layout], problems: list[str]) -> tuple[list[Row], list[str]]:
        """Rewrite the arrays of all steps with the signals that most episodes share."""
        counts: Counter[tuple[str, int]] = Counter()
        for layout, times in layouts.items():
            counts.update({signal: times for signal in layout})
        shared = tuple(sorted(s for s, times in counts.items() if 2 * times >= len(self._rows)))
        shared = tuple((name, width) for name, width in shared if _is_usual(name, width, counts))
        kept = [row for row in self._rows if set(shared) <= set(row.layout)]
        for row in self._rows:
            if missing := [f"{n} ({w})" for n, w in shared if (n, w) not in row.layout]:
                has = ", ".join(f"{name} ({width})" for name, width in row.layout) or "none"
                problems.append(
                    f"{row.origin.name} ({row.key}): lacks the signals {', '.join(missing)}, which "
                    f"other episodes have; it has {has}"
                )
        extra = sorted({name for row in kept for name, _ in set(row.layout) - set(shared)})
        remarks = [f"signals that only some episodes have are not used: {', '.join(extra)}"]
        self._rewrite(kept, shared)
        return kept, remarks if extra else []

    def _rewrite(self, rows: list[Row], shared: Layout) -> None:
        old_path = self._folder / "signals.f32"
        old, position, begins = np.fromfile(old_path, np.float32), 0, {}
        for row in self._rows:
            begins[id(row)] = position
            position += row.length * sum(width for _, width in row.layout)
        starts = [row.start for row in rows]
        lengths = [row.length for row in rows]
        steps = np.concatenate(
            [np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)] or [np.arange(0)]
        )
        self.total = 0
        with old_path.open("wb") as file:
            for row in rows:
                size = sum(width for _, width in row.layout)
                begin = begins[id(row)]
                array = old[begin : begin + row.length * size].reshape(row.length, size)
                columns = _columns(row.layout)
                chosen = [np.arange(*columns[name]) for name, _ in shared]
                data = array[:, np.concatenate([*chosen, np.arange(0)]).astype(int)].tobytes()
                file.write(data)
                row.crc, row.layout, row.start = google_crc32c.value(data), shared, self.total
                self.total += row.length
        for camera in self._places:
            for path, dtype in zip(
                place_files(self._folder, self.cameras.index(camera)), PLACE_DTYPES, strict=True
            ):
                np.fromfile(path, dtype)[steps].tofile(path)


def _is_usual(name: str, width: int, counts: Counter[tuple[str, int]]) -> bool:
    """Is this the most frequent width of the signal? At a tie the smaller one counts as usual."""
    widths = {w: times for (n, w), times in counts.items() if n == name}
    return width == min(widths, key=lambda w: (-widths[w], w))


PLACE_DTYPES: tuple[np.dtype, np.dtype] = (np.dtype(np.int64), np.dtype(np.int32))


def place_files(folder: Path, camera: int) -> tuple[Path, Path]:
    """Return the files with offsets and lengths of the frames of camera number `camera`."""
    return folder / f"frame_offsets_{camera}.i64", folder / f"frame_lengths_{camera}.i32"


# --------------------------------------------------------------------------- episodes


def _write_rows(folder: Path, rows: list[Row], names: list[str], steps: StepFiles) -> None:
    table = pd.DataFrame(
        {
            "name": names,
            "length": [row.length for row in rows],
            **{
                key: [getattr(row.origin, key) for row in rows]
                for key in ("session", "lab", "outcome", "date", "split")
            },
            **{
                key: [row.texts[i] if i < len(row.texts) else "" for row in rows]
                for i, key in enumerate(LANGUAGES)
            },
            "key": [row.key for row in rows],
            "file_path": [row.origin.file_path for row in rows],
            "start": [row.start for row in rows],
        }
    )
    table.to_csv(folder / "episodes.csv", index=False)
    np.save(folder / "names.npy", np.array([name.encode() for name in names]))
    np.save(folder / "starts.npy", np.array([row.start for row in rows], np.int64))
    np.save(folder / "lengths.npy", np.array([row.length for row in rows], np.int64))
    sizes = np.zeros((len(rows), len(steps.cameras), 2), np.int32)
    files = np.full((len(rows), len(steps.cameras)), -1, np.int32)
    for number, row in enumerate(rows):
        for camera, pictures in row.pictures.items():
            column = steps.cameras.index(camera)
            sizes[number, column] = pictures.size
            files[number, column] = steps.files.get(pictures.file, -1)
    np.save(folder / "sizes.npy", sizes)
    np.save(folder / "frame_files.npy", files)
    np.save(folder / "files.npy", np.array([os.fsencode(name) for name in steps.files] or [b""]))


def _signals_fingerprint(rows: Iterable[Row], names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for row, name in zip(rows, names, strict=True):
        digest.update(f"{name} {row.length} {row.crc}\n".encode())
    return digest.hexdigest()


def _fingerprint(signals_fingerprint: str, rows: Iterable[Row]) -> str:
    digest = hashlib.sha256(signals_fingerprint.encode())
    for row in rows:
        for camera, pictures in sorted(row.pictures.items()):
            height, width = pictures.size
            digest.update(f"{camera} {height} {width} {pictures.checksum}\n".encode())
    return digest.hexdigest()
