"""Index: what training needs to know of a data set, opened in milliseconds.

The index is built once (`indexing.py`) and kept in a folder beside the data set. With it, training
reads frames from the shards by byte range and needs no extraction. Everything large in it is
memory-mapped, so each loader worker opens it for free.

    <dataset>.index/
      index.json          source, fingerprint, columns of the signals, problems
      episodes.csv        one row per usable episode, sorted by name: for people and for filters
      names.npy  starts.npy  lengths.npy  shards.npy      the same rows, for the sampler   [N]
      signals.f32         all low-dimensional signals of all steps       float32 [total_steps, D]
      frame_offsets.i64   where a frame's bytes begin in its shard       int64   [total_steps, C]
      frame_lengths.i32   how many bytes a frame has                     int32   [total_steps, C]
      statistics.json     of the spaces that runs have used, written by `statistics.py`

C is the number of cameras. The two `frame_` files are empty for a tree, where each frame is a file.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcr.data.episode import LANGUAGES
from mcr.data.indexing import FORMAT, write_index
from mcr.data.sources import SOURCES, open_source
from mcr.errors import UserError


class Index:
    """An opened index. It is cheap to open and to pickle because arrays are mapped, not read.

    Rows are episodes, sorted by name. Step t of row r is at `starts[r] + t` in the step arrays.
    """

    def __init__(self, path: str | Path):
        """Open an index folder. Raises UserError if there is none, or one of another version."""
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
        """Folder of the data set: the root of the tree, or the folder of the shards."""
        return Path(self.info["source"])

    @property
    def kind(self) -> str:
        """Format of the data set, a key of `mcr.data.sources.SOURCES`: "rlds" or "tree"."""
        return self.info["kind"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, lengths and signals. Shards and the tree made of them share it."""
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
        """Return the columns of `signals` that hold the named signals, in that order: int64 [D].

        wanted_by: the option that names them, for the message

        Raises UserError for a signal that the data set lacks, with those that it has.
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
        """Raise UserError if the data set is gone or has changed since it was indexed."""
        if not self.source.is_dir():
            raise UserError(
                f"{self.source}: the indexed data set is gone; was it moved or renamed?"
            )
        now = SOURCES[self.kind](self.source).stamp()
        then = self.info["stamp"]
        if now != then:
            changed = sorted(k for k in {*now, *then} if now.get(k) != then.get(k))
            raise UserError(
                f"{self.source}: {len(changed)} entries changed since {self.path} was built "
                f"(first: {changed[0]}); delete that folder and run again to index the data anew"
            )


def default_index_path(source: str | Path) -> Path:
    """Return `<dataset>.index`. It is not inside, where upstream's tools would stumble over it."""
    source = Path(source).resolve()
    return source.with_name(f"{source.name}.index")


def open_index(
    source: str | Path, path: str | Path | None = None, workers: int = 0, executor: str = "local"
) -> Index:
    """Open the index of a data set, and build it first if there is none.

    source:   an RLDS version folder or the root of a tree
    path:     folder of the index; default `default_index_path`
    workers:  processes for building; 0 = one per core
    executor: who builds it: "local" (this machine) or "ray" (a Ray cluster)

    Raises UserError if the data set is missing, empty, or changed since it was indexed.
    """
    root = open_source(Path(source)).root
    path = Path(path) if path else default_index_path(root)
    if not path.exists():
        build_index(root, path, workers, executor)
    index = Index(path)
    if index.source != root.resolve():
        raise UserError(
            f"{path}: indexes {index.source}, not {root}; delete it, or choose another data.index"
        )
    index.check_source()
    return index


def build_index(source: Path, path: Path, workers: int = 0, executor: str = "local") -> Index:
    """Index a data set in the folder `path`, which must not exist, and print what was found.

    The arguments are those of `open_index`. Raises UserError if no episode can be used.
    """
    write_index(open_source(source), path, workers, executor)
    index = Index(path)
    problems = index.info["problems"]
    print(f"indexed {len(index)} episodes, {index.info['total_steps']} steps, in {path}")
    for problem in problems[:10]:
        print(f"  left out: {problem}")
    if len(problems) > 10:
        print(f"  ... and {len(problems) - 10} more: see {path / 'index.json'}")
    return index
