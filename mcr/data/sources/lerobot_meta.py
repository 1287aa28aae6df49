"""The folder `meta` of a LeRobotDataset, v2.0, v2.1 and v3.0: what its files are said to hold.

    meta/info.json                features, frames per second, templates of the files' paths
    meta/tasks.parquet            v3: instruction of each task_index   (v2: meta/tasks.jsonl)
    meta/episodes/**/*.parquet    v3: files and times of each episode  (v2: meta/episodes.jsonl)

Whether the files are there is not checked here.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mcr.data.regular_files import parse_json, read_json, read_text
from mcr.data.sources.columns import ParquetTable
from mcr.data.sources.source import DAMAGE, sentence
from mcr.errors import UserError

_NUMBERS = ("float", "int", "uint", "bool")
_TEMPLATE = re.compile(r"([^{}]|\{[a-z_]+(:0?\d{1,2}d?)?\}){0,1000}")
_PLACES = ("stats/", "meta/", "data/", "videos/")


@dataclass(frozen=True)
class Entry:
    """One episode as the meta data promise it.

    index:  its number in the data set
    length: steps
    split:  "train", ..., or ""
    task:   its first instruction, or ""
    data:   its parquet file, relative to the data set
    videos: key of a camera -> its file, and the time of the first frame in it, seconds
    fields: further texts and numbers that the meta data hold of it
    """

    index: int
    length: int
    split: str
    task: str
    data: str
    videos: dict[str, tuple[str, float]]
    fields: dict[str, str]

    @property
    def name(self) -> str:
        return f"episode_{self.index:06d}"


@dataclass(frozen=True)
class Meta:
    """What `meta` holds.

    version: (3, 0), ...
    fps:     steps per second
    videos, images: keys of pictures, in video files or in the parquet files. Depth is left out.
    numbers: key of numbers -> how many there are per step
    texts:   keys of texts in the parquet files
    tasks:   task_index -> instruction
    splits:  name -> (first episode, episode behind the last)
    num_episodes: as stated; None if it is not
    """

    version: tuple[int, int]
    fps: float
    videos: tuple[str, ...]
    images: tuple[str, ...]
    numbers: dict[str, int]
    texts: tuple[str, ...]
    tasks: dict[int, str]
    splits: dict[str, tuple[int, int]]
    entries: tuple[Entry, ...] = field(repr=False)
    num_episodes: int | None = None

    @classmethod
    def read(cls, root: Path) -> Meta:
        """Read the folder `meta` of a data set. Raises UserError that names a damaged file."""
        path = root / "meta" / "info.json"
        info = _json(path)
        try:
            version, fps = _version(path, info), float(info["fps"])
            features = {str(key): dict(value) for key, value in info["features"].items()}
            kinds = {key: str(feature["dtype"]) for key, feature in features.items()}
            numbers = {
                key: math.prod(map(int, features[key].get("shape") or [1]))
                for key, kind in kinds.items()
                if kind.startswith(_NUMBERS)
            }
            splits = {
                str(name): (int(first), int(behind))
                for name, text in dict(info.get("splits") or {}).items()
                for first, _, behind in [str(text).partition(":")]
            }
            stated = info.get("total_episodes")
            stated = None if stated is None else int(stated)
        except DAMAGE as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: is damaged ({error!r})") from error
        if not 0 < fps < 10_000:
            raise UserError(f"{path}: fps={fps} must be a number above 0")
        colours = [key for key in features if not _is_depth(features[key])]
        videos = tuple(key for key in colours if kinds[key] == "video")
        files = _Files(path, version, info, videos, splits)
        return cls(
            version=version,
            fps=fps,
            videos=videos,
            images=tuple(key for key in colours if kinds[key] == "image"),
            numbers=numbers,
            texts=tuple(key for key, kind in kinds.items() if kind == "string"),
            tasks=_tasks(root, version),
            splits=splits,
            entries=tuple(files.entries(root)),
            num_episodes=stated,
        )


def _is_depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("video.is_depth_map") or info.get("is_depth_map"))


def _version(path: Path, info: dict[str, Any]) -> tuple[int, int]:
    text = str(info["codebase_version"])
    major, _, minor = text.removeprefix("v").partition(".")
    version = int(major), int(minor or 0)
    if version[0] not in (2, 3):
        raise UserError(
            f"{path}: codebase_version={text!r}; v2.0, v2.1 and v3.0 are read. Convert the data "
            "set with the scripts of LeRobot"
        )
    return version


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is no readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no readable JSON (no mapping)")
    return content


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no mapping")
                yield row
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not readable ({error})") from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Read a table of the meta data, without the statistics of each episode."""
    try:
        with contextlib.closing(ParquetTable(path)) as table:
            names = [name for name in table.names if not name.startswith("stats/")]
            return table.read(names, 0, table.num_rows).to_pylist() if table.num_rows else []
    except DAMAGE as error:
        raise UserError(f"{path}: {sentence(error)}") from error


def _tasks(root: Path, version: tuple[int, int]) -> dict[int, str]:
    """Return the instruction of each task_index; {} if there is no list of tasks."""
    path = root / "meta" / ("tasks.parquet" if version >= (3, 0) else "tasks.jsonl")
    if not path.is_file():
        return {}
    rows = _parquet_rows(path) if version >= (3, 0) else list(_json_lines(path))
    tasks = {}
    for row in rows:
        texts = [value for value in row.values() if isinstance(value, str)]
        if not isinstance(row.get("task_index"), int) or len(texts) != 1:
            raise UserError(f"{path}: has the row {row}, not a task_index and one text")
        tasks[row["task_index"]] = texts[0]
    return tasks


@dataclass(frozen=True)
class _Files:
    """Finds the files of each episode."""

    path: Path
    version: tuple[int, int]
    info: dict[str, Any]
    videos: tuple[str, ...]
    splits: dict[str, tuple[int, int]]

    def entries(self, root: Path) -> Iterator[Entry]:
        """Yield the episodes in their order. Raises UserError for a damaged list."""
        known: dict[int, Entry] = {}
        for path, row in self._rows(root):
            try:
                entry = self._entry(row)
            except DAMAGE as error:
                problem = str(error) if isinstance(error, UserError) else repr(error)
                raise UserError(f"{path}: has a damaged row: {problem}") from error
            if entry.index in known:
                raise UserError(f"{path}: lists the episode {entry.index} twice")
            known[entry.index] = entry
        for index in sorted(known):
            yield known[index]

    def _rows(self, root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        if self.version < (3, 0):
            path = root / "meta" / "episodes.jsonl"
            yield from ((path, row) for row in _json_lines(path))
            return
        paths = sorted((root / "meta" / "episodes").rglob("*.parquet"))
        if not paths:
            raise UserError(f"{root / 'meta' / 'episodes'}: holds no *.parquet; download it, too")
        for path in paths:
            yield from ((path, row) for row in _parquet_rows(path))

    def _entry(self, row: dict[str, Any]) -> Entry:
        index, length = int(row["episode_index"]), int(row["length"])
        tasks = row.get("tasks") or [""]
        return Entry(
            index=index,
            length=length,
            split=next((n for n, (a, b) in self.splits.items() if a <= index < b), ""),
            task=str(tasks if isinstance(tasks, str) else tasks[0]),
            data=self._file("data_path", self._numbers(row, index, "data")),
            videos={key: self._video(row, index, key) for key in self._present(row)},
            fields={
                key: str(value)
                for key, value in row.items()
                if isinstance(value, str | int | float) and not key.startswith(_PLACES)
            },
        )

    def _present(self, row: dict[str, Any]) -> list[str]:
        """Return the cameras that an episode has according to its row."""
        if self.version < (3, 0):
            return list(self.videos)
        files = {key: row.get(f"videos/{key}/file_index") for key in self.videos}
        return [key for key, file in files.items() if file is not None and file == file]

    def _video(self, row: dict[str, Any], index: int, key: str) -> tuple[str, float]:
        numbers = self._numbers(row, index, f"videos/{key}")
        start = row[f"videos/{key}/from_timestamp"] if self.version >= (3, 0) else 0.0
        return self._file("video_path", {**numbers, "video_key": key}), float(start)

    def _numbers(self, row: dict[str, Any], index: int, place: str) -> dict[str, Any]:
        if self.version < (3, 0):
            chunk = index // int(self.info.get("chunks_size") or 1000)
            return {"episode_chunk": chunk, "episode_index": index}
        return {
            "chunk_index": int(row[f"{place}/chunk_index"]),
            "file_index": int(row[f"{place}/file_index"]),
        }

    def _file(self, template: str, values: dict[str, Any]) -> str:
        """Fill in the template of a path, which is not trusted. Raises UserError if it leaves."""
        text = str(self.info[template])
        if not _TEMPLATE.fullmatch(text):  # a width of a billion digits is a format, too
            raise UserError(f"{template}={text!r} is no template of a path")
        file = text.format_map(values)
        parts = PurePosixPath(file).parts
        if not parts or file.startswith("/") or ".." in parts or "\\" in file:
            raise UserError(f"{template}={self.info[template]!r} leads out of the data set")
        return file
