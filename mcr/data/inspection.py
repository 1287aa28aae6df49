"""Inspection: what is in a data set?

Everything comes from the index (built on first use), so 100,000 episodes take as long as ten: its
arrays are mapped, and the signals of at most a million steps are read. Inspection judges nothing
and changes nothing: filters are in `selection.py`, cleaning is in `clean.py`.

`inspection_report.py` and `inspection_picture.py` show the result, for `mcr inspect`.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass

import numpy as np

from mcr.data.frames import FrameReader
from mcr.data.index import Index
from mcr.data.inspection_signals import Dimension, action_means, idle_share, summarise
from mcr.errors import UserError

_MAX_STEPS = 1_000_000
_MAX_WEIGHED_FOLDERS = 20
_THUMBNAIL = 320  # largest width of a frame on the contact sheet, in pixels
_MIN_THUMBNAILS = 8  # smallest number of frames in a row of it


@dataclass(frozen=True)
class ExampleEpisode:
    """An episode that the picture shows.

    frames: per camera and step (first to last) uint8 [h, w, 3], or None if it is unreadable or the
            episode lacks the camera
    """

    row: int
    frames: list[list[np.ndarray | None]]


@dataclass(frozen=True)
class Inspection:
    """What is in a data set. Lengths and texts of the episodes are in `index.table`.

    disk:         size of the data in words
    num_steps:    number of steps whose signals were read
    num_episodes: number of episodes that these steps come from; their signals are read completely
    dimensions:   every dimension of every signal
    action_means: what `action` may be, see `inspection_signals.action_means`
    idle:         share of steps in which nothing moves faster than IDLE_SPEED; None = no joints
    unreadable:   a sentence for each frame of the examples that could not be read
    """

    index: Index
    disk: str
    num_steps: int
    num_episodes: int
    dimensions: list[Dimension]
    action_means: dict[str, tuple[float, float]]
    idle: float | None
    examples: list[ExampleEpisode]
    unreadable: list[str]


def inspect_dataset(
    index: Index, seed: int = 0, num_examples: int = 6, max_steps: int = _MAX_STEPS
) -> Inspection:
    """Inspect a data set. Memory: `max_steps` rows of signals, 200 bytes each in DROID.

    seed:      draws the example episodes, and those whose signals are read
    max_steps: if there are more steps, the signals of random episodes are read, up to this number
    """
    generator = np.random.default_rng(seed)
    rows = _draw_rows(np.asarray(index.lengths), max_steps, generator)
    starts, lengths = index.starts[rows], index.lengths[rows]
    signals = np.concatenate(
        [index.signals[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    )
    follows = np.ones(len(signals), bool)  # is the step before this one in the same episode?
    follows[np.cumsum(lengths) - lengths] = False
    shown = generator.permutation(len(index))[:num_examples]
    examples, unreadable = _read_examples(index, np.sort(shown).tolist())
    return Inspection(
        index=index,
        disk=_disk(index, generator),
        num_steps=len(signals),
        num_episodes=len(rows),
        dimensions=[
            summarise(signal, column - begin, signals[:, column], follows[1:])
            for signal, (begin, end) in index.info["columns"].items()
            for column in range(begin, end)
        ],
        action_means=action_means(index, signals),
        idle=idle_share(index, signals, follows[1:]),
        examples=examples,
        unreadable=unreadable,
    )


def _draw_rows(lengths: np.ndarray, max_steps: int, generator: np.random.Generator) -> np.ndarray:
    """Return all episodes, or random ones with `max_steps` steps together, at least one."""
    if lengths.sum() <= max_steps:
        return np.arange(len(lengths))
    rows = generator.permutation(len(lengths))
    count = np.searchsorted(np.cumsum(lengths[rows]), max_steps, side="right")
    return np.sort(rows[: max(1, count)])


def _disk(index: Index, generator: np.random.Generator) -> str:
    """Return the size of the data in words. That of many folders is estimated."""
    if index.frame_names is None:
        root = index.source
        if index.is_addressable:
            files = [index.root / os.fsdecode(bytes(name)) for name in index.files]
        else:
            files = [root] if root.is_file() else [f for f in root.rglob("*") if f.is_file()]
        total = sum(file.stat().st_size for file in files)
        return f"{_size(total)} in {len(files):,} files"
    rows = generator.permutation(len(index))[:_MAX_WEIGHED_FOLDERS]
    weighed = sum(
        path.stat().st_size
        for row in rows
        for file in set(index.frame_files[row].tolist()) - {-1}
        for path in (index.root / os.fsdecode(bytes(index.files[file]))).iterdir()
    )
    if len(rows) == len(index):
        return f"{_size(weighed)} of pictures in {len(index):,} folders"
    frames = int(index.lengths[rows].sum())
    whole = weighed * int(index.lengths.sum()) / frames
    return f"about {_size(whole)} (from {len(rows)} of {len(index):,} folders, by frames)"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _read_examples(index: Index, rows: list[int]) -> tuple[list[ExampleEpisode], list[str]]:
    unreadable: list[str] = []
    shrink = thumbnail_stride(index)

    def read(row: int, camera: int, steps: list[int]) -> list[np.ndarray | None]:
        if index.sizes[row, camera, 0] == 0:
            return [None] * len(steps)
        frames: list[np.ndarray | None] = []
        try:
            for frame in reader.episode(row, camera, steps):
                frames.append(frame[::shrink, ::shrink])
        except UserError as error:  # the frames after it may be readable
            unreadable.append(str(error))
            rest = steps[len(frames) + 1 :]
            frames += [None, *(read(row, camera, rest) if rest else [])]
        return frames

    cameras = range(len(index.cameras))
    num_steps = max(3, math.ceil(_MIN_THUMBNAILS / len(cameras)))
    examples = []
    with contextlib.closing(FrameReader(index)) as reader:
        for row in rows:
            steps = np.linspace(0, index.lengths[row] - 1, num_steps).astype(int).tolist()
            frames = [read(row, camera, steps) for camera in cameras]
            examples.append(ExampleEpisode(row, frames))
    return examples, unreadable


def thumbnail_stride(index: Index) -> int:
    """Return n such that every n-th pixel of a frame gives an image of at most 320 pixels width."""
    return math.ceil(int(index.sizes[:, :, 1].max()) / _THUMBNAIL)
