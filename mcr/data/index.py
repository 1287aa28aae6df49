"""Index: what training needs to know of a data set, opened in milliseconds.

The index is built once (`indexing.py`) and kept in a folder beside the data set. With it, training
reads frames by byte range and needs no extraction. Everything large in it is memory-mapped, so each
loader worker opens it for free.

    <dataset>.index/
      index.json          source, schema, fingerprints, columns of the signals, problems
      episodes.csv        one row per usable episode, sorted by name: for people and for filters
      names.npy  starts.npy  lengths.npy                  the same rows, for the sampler   [N]
      sizes.npy           height and width of the frames, 0 where an episode lacks a camera
                                                                          int32   [N, C, 2]
      signals.f32         all low-dimensional signals of all steps        float32 [total_steps, D]
      files.npy           files and folders that hold frames, relative to the data set's root
      frame_files.npy     which of them holds a camera's frames           int32   [N, C]
      frame_offsets_<c>.i64   where a frame's bytes begin in that file    int64   [total_steps]
      frame_lengths_<c>.i32   how many bytes a frame has                  int32   [total_steps]
      frame_names.bin     only if frames are files: their names; offsets and lengths are of these
      statistics.json     of the spaces that runs have used, written by `statistics.py`

C is the number of cameras, <c> a camera's number. Formats whose pictures have no byte range (video,
HDF5, parquet) have neither files, offsets nor lengths here but in a pack, see `pack.py`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcr.data.frame_store import FrameStore
from mcr.data.indexing import FORMAT, write_index
from mcr.data.schema import LANGUAGES, Schema, action_signals, load_schema, state_signals
from mcr.data.sources import open_source
from mcr.data.sources.source import Source
from mcr.errors import UserError, nearest, require_choice
from mcr.runs.locks import exclusive


class Index(FrameStore):
    """An opened index. It is cheap to open and to pickle because arrays are mapped, not read.

    Rows are episodes, sorted by name. Step t of row r is at `starts[r] + t` in the step arrays.
    """

    def __init__(self, path: str | Path, schema: Schema | None = None):
        """Open an index folder.

        schema: how to use the data; None = as it was indexed

        Raises UserError if there is no index, or one of another version.
        """
        self.path = Path(path)
        try:
            content = (self.path / "index.json").read_text(encoding="utf-8")
            self.info: dict[str, Any] = json.loads(content)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: no readable index ({error})") from error
        if self.info.get("format") != FORMAT:
            raise UserError(
                f"{self.path}: index format {self.info.get('format')!r}, not {FORMAT!r}; "
                "delete the folder and run again to rebuild it"
            )
        self._schema = schema

    def __reduce__(self):
        return Index, (self.path, self._schema)

    @property
    def source(self) -> Path:
        """The data set: a folder or a file."""
        return Path(os.path.normpath(self.path / self.info["source"]))

    @property
    def root(self) -> Path:
        """The folder that `files` are relative to."""
        return self.source if self.source.is_dir() else self.source.parent

    @property
    def name(self) -> str:
        """What the data set calls itself."""
        return self.info["name"]

    @property
    def kind(self) -> str:
        """Format of the data set, a key of `mcr.data.sources.SOURCES`."""
        return self.info["kind"]

    @cached_property
    def schema(self) -> Schema:
        """What the data set calls its state, action, ..."""
        return self._schema or Schema.of(self.info["schema"], str(self.path))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, lengths, signals and pictures."""
        return self.info["fingerprint"]

    @property
    def signals_fingerprint(self) -> str:
        """SHA-256 of names, lengths and signals. Data sets of other formats may share it."""
        return self.info["signals_fingerprint"]

    @property
    def cameras(self) -> tuple[str, ...]:
        """All cameras that an episode has."""
        return tuple(self.info["cameras"])

    @property
    def default_cameras(self) -> tuple[str, ...]:
        """The cameras that a recipe uses if it names none."""
        wanted = [camera for camera in self.schema.default_cameras if camera in self.cameras]
        return tuple(wanted) or self.cameras

    @property
    def signal_names(self) -> tuple[str, ...]:
        return tuple(self.info["columns"])

    @property
    def state(self) -> tuple[str, ...]:
        """The signals that make up the state."""
        return state_signals(self.schema, self.signal_names)

    @property
    def action(self) -> tuple[str, ...]:
        """The signals that make up the action; () if there are none."""
        return action_signals(self.schema, self.signal_names)

    @property
    def languages(self) -> tuple[str, ...]:
        """Columns of `table` with the instructions that the data set has."""
        return LANGUAGES[: self.info["languages"]]

    @property
    def is_addressable(self) -> bool:
        """Are all frames byte ranges or files? If not, training uses a pack."""
        return self.info["addressable"]

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
    def signals(self) -> np.ndarray:
        shape = (self.info["total_steps"], self.info["num_signals"])
        if shape[1] == 0:
            return np.zeros(shape, np.float32)
        return np.memmap(self.path / "signals.f32", np.float32, mode="r", shape=shape)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per episode: name, length, session, lab, outcome, split, instructions, ..."""
        texts = ("name", "session", "lab", "outcome", "date", "split", "key", "file_path")
        types = dict.fromkeys((*texts, *LANGUAGES), str)
        return pd.read_csv(self.path / "episodes.csv", dtype=types, keep_default_na=False)

    def columns(self, keys: tuple[str, ...], wanted_by: str = "") -> np.ndarray:
        """Return the columns of `signals` that hold the named signals, in that order: int64 [D].

        wanted_by: the option that names them, for the message

        Raises UserError for a signal that the data set lacks, with those that it has.
        """
        known = self.info["columns"]
        for key in keys:
            if key not in known:
                purpose = f" for {wanted_by}" if wanted_by else ""
                fix = f"; it has {', '.join(known)}{nearest(key, known)}" if known else ", nor any"
                raise UserError(f"{self.source}: no signal {key!r}{purpose}{fix}")
        return np.concatenate([np.arange(*known[key]) for key in keys] or [np.arange(0)])

    def signal_columns(self, name: str) -> np.ndarray:
        """Return the columns of "state", "action" (as the schema names them), or of a signal."""
        keys = {"state": self.state, "action": self.action}.get(name) or (name,)
        if keys == (name,) and name in ("state", "action") and name not in self.signal_names:
            has = ", ".join(self.signal_names) or "none"
            raise UserError(
                f"{self.source}: nothing says which signals are the {name}; it has {has}. Give a "
                f"schema with {name}: [...]"
            )
        return self.columns(keys)

    def row(self, episode: str | int) -> int:
        """Return the row of an episode, by name or row. Raises UserError for an unknown name."""
        if isinstance(episode, int | np.integer):
            return range(len(self))[int(episode)]
        row = int(np.searchsorted(self.names, np.bytes_(episode.encode())))
        if row == len(self) or self.names[row].decode() != episode:
            names = [name.decode() for name in self.names[max(0, row - 50) : row + 50]]
            raise UserError(f"{self.source}: no episode {episode!r}{nearest(episode, names)}")
        return row

    def camera(self, name: str) -> int:
        """Return the number of a camera. Raises UserError for an unknown one."""
        return self.cameras.index(require_choice("camera", name, self.cameras))

    def text(self, row: int) -> str:
        """Return an episode's first instruction that is not empty, or ""."""
        values = self.table.iloc[row]
        return next((values[key] for key in self.languages if values[key]), "")


def default_index_path(source: str | Path) -> Path:
    """Return `<dataset>.index`, or a folder in the user's cache if the data's folder is read-only.

    The index is not inside the data set, where upstream's tools would stumble over it.
    """
    source = Path(source).resolve()
    beside = source.with_name(f"{source.name}.index")
    return beside if beside.exists() or may_hold(beside) else in_cache("indexes", source, "index")


def may_hold(path: Path) -> bool:
    """Whether a file or folder of this name may be written beside the data."""
    return os.access(path.parent, os.W_OK)


def in_cache(kind: str, source: Path, suffix: str) -> Path:
    """Return a place in the user's cache for what belongs to `source`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcr" / kind
    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]
    return cache / f"{source.name}-{digest}.{suffix}"


def _current_or_new_path(source: Source) -> Path:
    """Return the default path; if an old index lies there that cannot be replaced, another one."""
    path = default_index_path(source.path)
    if may_hold(path) or _why_not_current(path, source) is None:
        return path
    return in_cache("indexes", source.path, "index")


def open_index(
    source: str | Path,
    path: str | Path | None = None,
    workers: int = 0,
    executor: str = "local",
    schema: str | Path | Mapping[str, Any] | Schema | None = None,
) -> Index:
    """Open the index of a data set. It is built if there is none, or if the data has changed.

    source:   a data set of any format, or an index itself
    path:     folder of the index; default `default_index_path`
    workers:  processes for building; 0 = one per core
    executor: who builds it: "local" (this machine) or "ray" (a Ray cluster)
    schema:   what `load_schema` takes, or a Schema; None = the one that is known of the data set

    Raises UserError if the data set is missing or empty, or if `path` holds something else.
    """
    source = Path(source).expanduser()
    if schema is not None and not isinstance(schema, Schema):
        schema = load_schema(schema)
    if (source / "index.json").is_file():
        if path and Path(path).resolve() != source.resolve():
            raise UserError(f"{source} is an index itself; leave --index {path} out")
        path, source = source, Index(source).source
        if not source.exists():
            raise UserError(f"{source}: the indexed data set is gone; was it moved or renamed?")
    opened = open_source(source, schema)
    path = Path(path) if path else _current_or_new_path(opened)
    if _why_not_current(path, opened) is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(path):
                reason = _why_not_current(path, opened)
                if reason is not None:  # another process has not built it meanwhile
                    if reason:
                        print(f"{reason}; indexing anew", flush=True)
                    build_index(opened, path, workers, executor)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise UserError(
                f"{path}: {error.strerror}; choose a place with --index (data.index= in training)"
            ) from error
    return Index(path, opened.schema)


def _why_not_current(path: Path, source: Source) -> str | None:
    """Return None if the index at `path` is of the data set as it is now, else the reason.

    The reason is "" if there is no index. Raises UserError if it is of another data set.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return ""
    try:
        info = json.loads((path / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: is no readable index ({error}); delete it, or choose another data.index"
        ) from error
    if not str(info.get("format")).startswith("mcr-index-"):
        raise UserError(f"{path}: is no index; choose another data.index")
    if info["format"] != FORMAT:
        return f"{path}: was built by another version"
    index = Index(path)
    if index.source.resolve() != source.path.resolve():
        raise UserError(
            f"{path}: indexes {index.source}, not {source.path}; delete it, or choose another "
            "data.index"
        )
    now, then = source.stamp(), info["stamp"]
    if now != then:
        changed = sorted(k for k in {*now, *then} if now.get(k) != then.get(k))
        return (
            f"{source.path}: {len(changed)} entries changed since it was indexed (first: "
            f"{changed[0]})"
        )
    if index.schema.reads() != source.schema.reads():
        return f"{source.path}: the schema reads other fields"
    return None


def build_index(source: Source, path: Path, workers: int = 0, executor: str = "local") -> Index:
    """Index a data set in the folder `path`, replacing what is there, and print what was found.

    The arguments are those of `open_index`. Raises UserError if no episode can be used.
    """
    write_index(source, path, workers, executor)
    index = Index(path)
    problems = index.info["problems"]
    print(f"indexed {len(index)} episodes, {index.info['total_steps']} steps, in {path}")
    for remark in index.info["remarks"]:
        print(f"  {remark}")
    for problem in problems[:10]:
        print(f"  left out: {problem}")
    if len(problems) > 10:
        print(f"  ... and {len(problems) - 10} more: see {path / 'index.json'}")
    return index
