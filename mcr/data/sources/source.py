"""Source: what the index needs from a data set, whatever its format.

A source lists its parts. A part is the unit of parallel work: a shard, or a handful of folders. It
travels to a worker process, which reads it to `Contents`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from mcr.data.episode import FLAGS, LANGUAGES, Origin

Columns = dict[str, tuple[int, int]]  # signal -> (first column, one past the last)


@dataclass
class Contents:
    """What the index keeps of one part.

    rows:          one per usable episode, see `episode_row`
    signals:       float32 [T, D] per row
    frame_offsets: int64 [T, cameras] per row; empty if frames are files of their own
    frame_lengths: int32 [T, cameras] per row; empty if frames are files of their own
    problems:      one sentence per episode that is left out
    columns:       where each signal lies in `signals`
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    signals: list[np.ndarray] = field(default_factory=list)
    frame_offsets: list[np.ndarray] = field(default_factory=list)
    frame_lengths: list[np.ndarray] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    columns: Columns = field(default_factory=dict)


class Part(Protocol):
    """A piece of a data set that can be pickled."""

    @property
    def size(self) -> int:
        """How much of the progress bar it fills, in the `unit` of its source."""

    def read(self) -> Contents:
        """Read the part. Episodes that cannot be used become `problems`."""


class Source(Protocol):
    """A data set in one format.

    kind: name of the format, as the index notes it
    unit: what the sizes of the parts count, for the progress bar
    """

    kind: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, folder: Path):
        """Open a data set. Raises UserError if it is damaged."""

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Does an existing folder hold a data set of this format?"""

    @property
    def root(self) -> Path:
        """The folder that frames are read from."""

    @property
    def shards(self) -> list[str]:
        """Names of the files that hold frames, in the order of their numbers in the rows."""

    def cameras(self) -> list[str]:
        """Names of the cameras. Raises UserError if there are none."""

    def parts(self) -> Sequence[Part]:
        """All parts, in the order in which the index stores their steps."""

    def is_small(self) -> bool:
        """Would starting worker processes take longer than reading the data here?"""

    def stamp(self) -> dict[str, int]:
        """Return values that change if the data set changes. This is cheap."""


def episode_row(
    origin: Origin,
    name: str,
    length: int,
    languages: dict[str, str],
    shard: int,
    file_path: str,
    picture: tuple[int, int, str],
    record_offset: int | None = None,
) -> dict[str, Any]:
    """Return an episode's row in the index.

    name:    "" if it can only be told from the file paths of the whole data set
    shard:   position in `Source.shards`, 0 if there are none
    picture: height, width and file suffix of its frames; the suffix is "" inside shards
    record_offset: where its record begins in the shard, None if there are no shards
    """
    return {
        "name": name,
        "length": length,
        "session": origin.session,
        "lab": origin.lab,
        "outcome": origin.outcome,
        "date": origin.date,
        **{key: " ".join(languages.get(key, "").split()) for key in LANGUAGES},
        "shard": shard,
        **({} if record_offset is None else {"record_offset": record_offset}),
        "file_path": file_path,
        "picture": picture,
    }


def stack_signals(signals: dict[str, np.ndarray]) -> tuple[Columns, np.ndarray]:
    """Return the columns by name, and all signals side by side as float32 [T, D].

    Flags are left out. Raises ValueError for a NaN or an infinite value.
    """
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
