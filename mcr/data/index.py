"""Index: what training needs to know of a data set, found once, kept beside it.

Built in one pass over RLDS shards or over a PNG/pickle tree, checksums included; opened in
milliseconds afterwards, also by every loader worker, because everything large is memory-mapped.
With it, training reads frames straight from the shards by byte range: no extraction needed.

    <dataset>.index/
      index.json          source, fingerprint, columns of the signals, problems
      episodes.csv        one row per usable episode, sorted by name: for people and for filters
      names.npy  starts.npy  lengths.npy  shards.npy      the same rows, for the sampler   [N]
      signals.f32         all low-dimensional signals of all steps       float32 [total_steps, D]
      frame_offsets.i64   where a frame's bytes begin in its shard       int64   [total_steps, V]
      frame_lengths.i32   how many they are (both: shards only)          int32   [total_steps, V]
      statistics.json     of the spaces that runs have used: written by `statistics.py`

Whether an episode is fit for training is a filter of the recipe (`selection.py`), not a property of
the index; what cannot be read at all is left out and listed under "problems".
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd

from mcr.data import pictures
from mcr.data.droid import RldsDataset
from mcr.data.episode import (
    FLAGS,
    LANGUAGES,
    OTHER_DATA,
    Origin,
    read_other_data,
    unique_names,
)
from mcr.data.tfrecord import BadRecord
from mcr.errors import UserError
from mcr.runs.processes import ordered_map, progress_bar

FORMAT = "mcr-index-2"
_EPISODES_PER_TREE_PART = 64
_WORTH_PROCESSES = 2**28  # bytes of shards: indexing less takes less time than starting processes


# --------------------------------------------------------------------------- reading


class Index:
    """An opened index. Cheap to open and to pickle: arrays are mapped, not read.

    Rows are episodes, sorted by name; a step of row r is at `starts[r] + step` in the step arrays.
    """

    def __init__(self, path: str | Path):
        """Open an index folder. Raises UserError if it is none or of another version."""
        self.path = Path(path)
        try:
            self.info: dict[str, Any] = json.loads((self.path / "index.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: no readable index ({error})") from error
        if self.info.get("format") != FORMAT:
            raise UserError(
                f"{self.path}: index format {self.info.get('format')!r}, not {FORMAT!r}; "
                "delete the folder and run again to rebuild it"
            )
        if "views" in self.info:  # as cameras were called once
            self.info["cameras"] = self.info.pop("views")

    def __reduce__(self):
        return Index, (self.path,)

    @property
    def source(self) -> Path:
        """Folder of the data set: the tree's root, or the shards' folder."""
        return Path(self.info["source"])

    @property
    def kind(self) -> str:
        """ "rlds" or "tree"."""
        return self.info["kind"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, lengths and signals: the same for shards and the tree made of them."""
        return self.info["fingerprint"]

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.info["cameras"])

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        height, width = self.info["frame_size"]
        return height, width

    @property
    def suffix(self) -> str:
        """ ".png" or ".jpg" for a tree, "" for shards."""
        return self.info["suffix"]

    def __len__(self) -> int:
        """Number of usable episodes."""
        return len(self.lengths)

    @cached_property
    def names(self) -> np.ndarray:
        return np.load(self.path / "names.npy", mmap_mode="r")

    @cached_property
    def starts(self) -> np.ndarray:
        return np.load(self.path / "starts.npy", mmap_mode="r")

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.load(self.path / "lengths.npy", mmap_mode="r")

    @cached_property
    def shards(self) -> np.ndarray:
        """Row -> position in `info["shards"]`."""
        return np.load(self.path / "shards.npy", mmap_mode="r")

    @cached_property
    def signals(self) -> np.ndarray:
        return self._map("signals.f32", np.float32, self.info["num_signals"])

    @cached_property
    def frame_offsets(self) -> np.ndarray:
        return self._map("frame_offsets.i64", np.int64, len(self.cameras))

    @cached_property
    def frame_lengths(self) -> np.ndarray:
        return self._map("frame_lengths.i32", np.int32, len(self.cameras))

    def _map(self, name: str, dtype: type, width: int) -> np.ndarray:
        shape = (self.info["total_steps"], width)
        return np.memmap(self.path / name, dtype, mode="r", shape=shape)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per episode: name, length, session, lab, outcome, file_path, instructions, ..."""
        keys = ("name", "session", "lab", "outcome", "date", "file_path", *LANGUAGES)
        text = dict.fromkeys(keys, str)
        return pd.read_csv(self.path / "episodes.csv", dtype=text, keep_default_na=False)

    def columns(self, keys: tuple[str, ...], wanted_by: str = "") -> np.ndarray:
        """Positions in `signals` of the named signals, concatenated in the given order, int64 [D].

        Raises UserError naming what there is, and the option that wants what there is not.
        """
        known = self.info["columns"]
        for key in keys:
            if key not in known:
                purpose = f" for {wanted_by}" if wanted_by else ""
                raise UserError(
                    f"{self.source}: no signal {key!r}{purpose}; it has {', '.join(known)}"
                )
        return np.concatenate([np.arange(*known[key]) for key in keys])

    def check_source(self) -> None:
        """Raise UserError if the data set is gone or no longer what was indexed."""
        if not self.source.is_dir():
            raise UserError(
                f"{self.source}: the indexed data set is gone; was it moved or renamed?"
            )
        now = _stamp(self.kind, self.source)
        then = self.info["stamp"]
        if now != then:
            changed = sorted(k for k in {*now, *then} if now.get(k) != then.get(k))
            raise UserError(
                f"{self.source}: {len(changed)} entries changed since {self.path} was built "
                f"(first: {changed[0]}); delete that folder and run again to index the data anew"
            )


def default_index_path(source: str | Path) -> Path:
    """`<dataset>.index` beside the data set: upstream's tools would stumble over it inside."""
    source = Path(source).resolve()
    return source.with_name(f"{source.name}.index")


def open_index(
    source: str | Path, path: str | Path | None = None, workers: int = 0, executor: str = "local"
) -> Index:
    """Open the index of a data set, building it first if there is none.

    source:  an RLDS version folder or the root of a tree
    path:    where the index lies; default `default_index_path`
    workers: processes for building; 0 = one per core
    executor: who builds it: "local" (this machine) or "ray" (a Ray cluster)
    Raises UserError if the data set is missing, empty, or changed since it was indexed.
    """
    _, source = _recognise(Path(source))
    path = Path(path) if path else default_index_path(source)
    if not path.exists():
        build_index(source, path, workers, executor)
    index = Index(path)
    if index.source != source.resolve():
        raise UserError(
            f"{path}: indexes {index.source}, not {source}; delete it, or choose another data.index"
        )
    index.check_source()
    return index


def _recognise(source: Path) -> tuple[str, Path]:
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; data.root is a tree or an RLDS version folder")
    # by the version's name (1.0.1), not "*": a look into each of 100,000 episodes takes seconds
    if (source / "features.json").is_file() or list(source.glob("*.*.*/features.json")):
        return "rlds", RldsDataset.open(source).root
    if not any(_folder_names(source)):
        raise UserError(
            f"{source}: holds neither shards (features.json) nor episodes (*/{OTHER_DATA})"
        )
    return "tree", source


def _stamp(kind: str, source: Path) -> dict[str, int]:
    """A quick picture of the data set: sizes of shards, or names of episode folders."""
    if kind == "rlds":
        return {path.name: path.stat().st_size for path in RldsDataset.open(source).shards}
    names = "\n".join(sorted(_folder_names(source)))
    return {"episode folders": google_crc32c.value(names.encode())}


def _episode_folders(root: Path) -> list[Path]:
    return [root / name for name in sorted(_folder_names(root))]


def _folder_names(root: Path) -> Iterator[str]:
    with os.scandir(root) as entries:
        yield from (e.name for e in entries if e.is_dir() and not e.name.startswith("."))


# --------------------------------------------------------------------------- building


@dataclass
class _Part:
    """What one shard, or one handful of folders, contributes; crosses a process border."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    signals: list[np.ndarray] = field(default_factory=list)
    frame_offsets: list[np.ndarray] = field(default_factory=list)
    frame_lengths: list[np.ndarray] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    columns: dict[str, tuple[int, int]] = field(default_factory=dict)
    progress: int = 0  # bytes of the shard, or folders


def build_index(source: Path, path: Path, workers: int = 0, executor: str = "local") -> Index:
    """Index a data set in one parallel pass and print what was found.

    Appears whole or not at all. Memory: an episode per worker, and 3 to 4 KB for every row.
    """
    kind, source = _recognise(source)
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{partial}: {error.strerror}; choose a place with data.index=") from error
    try:
        run = functools.partial(ordered_map, workers=workers, executor=executor)
        if executor == "local" and kind == "rlds" and _num_bytes(source) < _WORTH_PROCESSES:
            run = functools.partial(ordered_map, workers=1)
        info = _write_index(kind, source, partial, run)
        (partial / "index.json").write_text(json.dumps(info, indent=1))
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    problems = info["problems"]
    print(f"indexed {info['episodes']} episodes, {info['total_steps']} steps, in {path}")
    for problem in problems[:10]:
        print(f"  left out: {problem}")
    if len(problems) > 10:
        print(f"  ... and {len(problems) - 10} more: see {path / 'index.json'}")
    return Index(path)


def _num_bytes(source: Path) -> int:
    return sum(path.stat().st_size for path in RldsDataset.open(source).shards)


def _write_index(kind: str, source: Path, folder: Path, run: _Map) -> dict[str, Any]:
    cameras, parts = _shard_parts(source, run) if kind == "rlds" else _tree_parts(source, run)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    columns: dict[str, tuple[int, int]] = {}
    pictures_seen: Counter[tuple[int, int, str]] = Counter()
    total_steps = 0
    with (
        (folder / "signals.f32").open("wb") as signals,
        (folder / "frame_offsets.i64").open("wb") as offsets,
        (folder / "frame_lengths.i32").open("wb") as lengths,
    ):
        for part in parts:
            problems += part.problems
            columns = columns or part.columns
            if part.rows and part.columns != columns:
                where = part.rows[0]["name"] or part.rows[0]["file_path"]
                raise UserError(
                    f"{source}: {where} has signals {part.columns}, earlier ones {columns}; "
                    "one data set must have one set of signals"
                )
            for row, array in zip(part.rows, part.signals, strict=True):
                row["start"] = total_steps
                row["crc"] = google_crc32c.value(array.tobytes())
                pictures_seen[row["picture"]] += 1
                total_steps += row["length"]
                signals.write(array.tobytes())
            for file, arrays in ((offsets, part.frame_offsets), (lengths, part.frame_lengths)):
                for array in arrays:
                    file.write(array.tobytes())
            rows += part.rows
    usual = pictures_seen.most_common(1)[0][0] if pictures_seen else (0, 0, "")
    problems += [
        f"{row['name'] or row['file_path']}: frames are {row['picture']}, in other episodes {usual}"
        for row in rows
        if row["picture"] != usual
    ]
    table = _table(kind, [row for row in rows if row["picture"] == usual])
    if table.empty:
        shown = "".join(f"\n  {problem}" for problem in problems[:5])
        raise UserError(f"{source}: no usable episode{shown}")
    _write_rows(folder, table)
    return {
        "format": FORMAT,
        "kind": kind,
        "source": str(source.resolve()),
        "fingerprint": _fingerprint(table),
        "episodes": len(table),
        "total_steps": total_steps,
        "cameras": cameras,
        "frame_size": usual[:2],
        "suffix": usual[2],
        "columns": columns,
        "num_signals": max(end for _, end in columns.values()),
        "shards": [path.name for path in RldsDataset.open(source).shards] if kind == "rlds" else [],
        "stamp": _stamp(kind, source),
        "problems": problems,
    }


def _table(kind: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    if kind == "rlds":
        table["name"] = unique_names(table["file_path"].tolist())
    return table.sort_values("name", ignore_index=True)


def _write_rows(folder: Path, table: pd.DataFrame) -> None:
    table.drop(columns=["crc", "picture"]).to_csv(folder / "episodes.csv", index=False)
    np.save(folder / "names.npy", np.array([name.encode() for name in table["name"]]))
    np.save(folder / "starts.npy", table["start"].to_numpy(np.int64))
    np.save(folder / "lengths.npy", table["length"].to_numpy(np.int64))
    np.save(folder / "shards.npy", table["shard"].to_numpy(np.int32))


def _fingerprint(table: pd.DataFrame) -> str:
    digest = hashlib.sha256()
    for name, length, crc in zip(table["name"], table["length"], table["crc"], strict=True):
        digest.update(f"{name} {length} {crc}\n".encode())
    return digest.hexdigest()


_Map = Callable[[Callable[[Any], _Part], list[Any]], Iterator[_Part]]


def _in_order(
    run: _Map, function: Callable[[Any], _Part], tasks: list[Any], unit: str, total: int
) -> Iterator[_Part]:
    """Parts in order, with a progress bar."""
    with progress_bar(None, "index", unit, total) as bar:
        bar.unit_scale = True
        for part in run(function, tasks):
            bar.update(part.progress)
            yield part


# --- from shards


def _shard_parts(source: Path, run: _Map) -> tuple[list[str], Iterator[_Part]]:
    dataset = RldsDataset.open(source)
    tasks = [(dataset.narrow(number), number) for number in range(len(dataset.shards))]
    total = sum(path.stat().st_size for path in dataset.shards)
    return list(dataset.cameras), _in_order(run, _index_shard, tasks, "B", total)


def _index_shard(task: tuple[RldsDataset, int]) -> _Part:
    dataset, number = task
    (shard,) = dataset.shards
    part = _Part(progress=shard.stat().st_size)
    for record in dataset.records(shard):
        try:
            episode = dataset.parse(record)
            size = pictures.size_of(episode.encoded_frame(dataset.cameras[0], 0))
            part.columns, signals = _stack(episode.signals)
        except BadRecord as error:
            part.problems.append(str(error))
            continue
        except ValueError as error:
            part.problems.append(f"{shard} at byte {record.offset}: {error}")
            continue
        part.signals.append(signals)
        ranges = [episode.frame_ranges[camera] for camera in dataset.cameras]
        part.frame_offsets.append(np.stack([begin for begin, _ in ranges], 1) + record.offset)
        part.frame_lengths.append(np.stack([n for _, n in ranges], 1).astype(np.int32))
        part.rows.append(
            _row(episode.origin, "", episode.length, episode.languages, number)
            | {
                "record_offset": record.offset,
                "file_path": episode.file_path,
                "picture": (*size, ""),
            }
        )
    return part


def _row(
    origin: Origin, name: str, length: int, languages: dict[str, str], shard: int
) -> dict[str, Any]:
    return {
        "name": name,
        "length": length,
        "session": origin.session,
        "lab": origin.lab,
        "outcome": origin.outcome,
        "date": origin.date,
        **{key: " ".join(languages.get(key, "").split()) for key in LANGUAGES},
        "shard": shard,
    }


def _stack(signals: dict[str, np.ndarray]) -> tuple[dict[str, tuple[int, int]], np.ndarray]:
    """Columns by name, and all signals side by side: float32 [T, D]. Flags are left out."""
    columns, arrays, position = {}, [], 0
    for key in sorted(key for key in signals if key not in FLAGS):
        array = np.asarray(signals[key], np.float32)
        array = array.reshape(len(array), -1)
        if not np.isfinite(array).all():
            step = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise ValueError(f"{key} is not finite at step {step}")
        columns[key] = (position, position + array.shape[1])
        position += array.shape[1]
        arrays.append(array)
    return columns, np.concatenate(arrays, axis=1)


# --- from a tree


def _tree_parts(source: Path, run: _Map) -> tuple[list[str], Iterator[_Part]]:
    folders = _episode_folders(source)
    cameras = _tree_cameras(folders)
    tasks = [
        (folders[i : i + _EPISODES_PER_TREE_PART], cameras)
        for i in range(0, len(folders), _EPISODES_PER_TREE_PART)
    ]
    return cameras, _in_order(run, _index_folders, tasks, "episodes", len(folders))


def _tree_cameras(folders: list[Path]) -> list[str]:
    """The cameras that the first episode with any pictures has; others must have them too."""
    for folder in folders:
        cameras = sorted(p.name for p in folder.iterdir() if p.is_dir() and "image" in p.name)
        if cameras:
            return cameras
    raise UserError(f"{folders[0].parent}: no episode has a folder of pictures (*image*)")


def _index_folders(task: tuple[list[Path], list[str]]) -> _Part:
    folders, cameras = task
    part = _Part(progress=len(folders))
    for folder in folders:
        try:
            row, columns, signals = _index_folder(folder, cameras)
        except (UserError, OSError, ValueError) as error:
            part.problems.append(f"{folder.name}: {error}")
            continue
        part.columns = part.columns or columns
        if columns != part.columns:
            part.problems.append(f"{folder.name}: signals {columns}, others {part.columns}")
            continue
        part.signals.append(signals)
        part.rows.append(row)
    return part


def _index_folder(
    folder: Path, cameras: list[str]
) -> tuple[dict[str, Any], dict[str, tuple[int, int]], np.ndarray]:
    data = read_other_data(folder / OTHER_DATA)
    columns, signals = _stack(_tree_signals(data))
    suffix = ""
    for camera in cameras:
        names = {path.name for path in (folder / camera).iterdir()}
        suffix = ".png" if "0.png" in names else ".jpg"
        if names != {f"{step}{suffix}" for step in range(len(signals))}:
            raise ValueError(
                f"{camera} holds {len(names)} files, not frames 0..{len(signals) - 1} as "
                f"{OTHER_DATA} says; scripts/delete_short_videos.py reports such episodes"
            )
    origin = _tree_origin(folder.name, data)
    languages = {
        key: (folder / key / "0.txt").read_text(encoding="utf-8")
        for key in LANGUAGES
        if (folder / key / "0.txt").is_file()
    }
    first = (folder / cameras[0] / f"0{suffix}").read_bytes()
    row = _row(origin, folder.name, len(signals), languages, 0)
    row |= {
        "file_path": str(data.get("file_path", "")),
        "picture": (*pictures.size_of(first), suffix),
    }
    return row, columns, signals


def _tree_signals(data: dict[str, Any]) -> dict[str, np.ndarray]:
    """Signals of an episode from the lists in `other_data.pkl`. Raises ValueError if unequal."""
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


def _tree_origin(name: str, data: dict[str, Any]) -> Origin:
    """From the recorded path; upstream's trees have only the folder's name: <date>_<recording>."""
    if data.get("file_path"):
        return Origin.parse(str(data["file_path"]))
    date, _, recording = name.partition("_")
    return Origin(lab="", outcome="", date=date, recording=recording or name)
