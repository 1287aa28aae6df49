"""Loader: index and recipe -> batches, one stream for any number of workers and processes.

A worker draws, reads and packs a whole batch per call: a handful of large tensors, uint8 pixels,
and no Python loop over anything but frames. A broken frame is not an exception inside a worker: it
is reported with the batch, so that the run can count, go on, or stop with one clear sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mcr.data.batch import NUM_FRAMES, Batch, Dimensions
from mcr.data.frames import FrameReader
from mcr.data.index import Index
from mcr.data.sampling import TRAIN, SamplingConfig, draw_samples
from mcr.data.selection import SelectionConfig
from mcr.errors import UserError, require_choice

_MAX_ATTEMPTS = 20  # redraws of one sample before a data set is called unreadable


@dataclass
class DataConfig:
    """Where the data is and how it is read.

    root:        RLDS version folder (shards) or root of a PNG/pickle tree
    index:       folder of the index; "" = `<root>.index`, built on first use
    views:       cameras to sample from, one per clip
    state_keys:  signals of a window's states, concatenated; action_key: the action
    workers:     loader processes; 0 reads in the training process
    prefetch:    batches that each worker keeps ready
    on_error:    "raise" stops at the first unreadable frame; "skip" draws that sample anew
    max_errors:  with "skip": more unreadable samples than this stop the run
    """

    root: str = ""
    index: str = ""
    views: list[str] = field(
        default_factory=lambda: ["exterior_image_1_left", "exterior_image_2_left"]
    )
    state_keys: list[str] = field(
        default_factory=lambda: ["cartesian_position", "gripper_position", "joint_position"]
    )
    action_key: str = "action"
    workers: int = 4
    prefetch: int = 4
    on_error: str = "raise"
    max_errors: int = 100
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)


@dataclass
class Loaded:
    """A batch, and what could not be read on the way to it (one sentence each)."""

    batch: Batch | None
    errors: list[str]

    def pin_memory(self) -> Loaded:
        return Loaded(self.batch.pin_memory() if self.batch else None, self.errors)


class ClipDataset(Dataset):
    """Sample numbers -> Batch. Cheap to send to a worker: the index is mapped, files open lazily.

    Raises UserError at construction for a view or signal that the data set lacks.
    """

    def __init__(
        self,
        index: Index,
        rows: np.ndarray,
        config: DataConfig,
        seed: int,
        stream: int = TRAIN,
    ):
        """rows: int64 [n], the episodes to draw from (see `select_episodes`)."""
        for view in config.views:
            require_choice("data.views", view, index.views)
        if not config.views or len(rows) == 0:
            raise UserError("no views or no episodes to draw samples from")
        require_choice("data.on_error", config.on_error, ("raise", "skip"))
        self._index, self._rows, self._config = index, rows, config
        self._seed, self._stream = seed, stream
        self._lengths = np.asarray(index.lengths)[rows]
        self._views = [index.views.index(view) for view in config.views]
        self._state_columns = index.columns(tuple(config.state_keys))
        self._action_columns = index.columns((config.action_key,))

    @property
    def dimensions(self) -> Dimensions:
        return Dimensions(
            state=len(self._state_columns),
            action=len(self._action_columns),
            window=self._config.sampling.window,
        )

    @cached_property
    def _frames(self) -> FrameReader:  # opened by the process that reads
        return FrameReader(self._index)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_frames"}

    def __getitems__(self, samples: list[int]) -> Loaded:
        """The batch of consecutive sample numbers `samples`."""
        errors: list[str] = []
        parts = []
        try:
            for part in self._readable_parts(samples[0], len(samples), 0, errors):
                parts.append(part)
        except UserError as error:
            return Loaded(None, [*errors, str(error)])
        return Loaded(_join(parts, samples), errors)

    def _readable_parts(
        self, first: int, count: int, attempt: int, errors: list[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Arrays for samples first .. first + count - 1, in order; each unreadable one redrawn."""
        arrays, unreadable = self._read(first, count, attempt)
        if unreadable and (self._config.on_error == "raise" or attempt == _MAX_ATTEMPTS):
            raise UserError(next(iter(unreadable.values())))
        begin = 0
        for position, problem in unreadable.items():
            errors.append(problem)
            yield {key: value[begin:position] for key, value in arrays.items()}
            yield from self._readable_parts(first + position, 1, attempt + 1, errors)
            begin = position + 1
        yield {key: value[begin:] for key, value in arrays.items()}

    def _read(
        self, first: int, count: int, attempt: int
    ) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """(arrays of the batch, position -> why that sample could not be read)."""
        index = self._index
        draw = draw_samples(
            self._seed,
            first,
            count,
            self._lengths,
            len(self._views),
            index.frame_size,
            self._config.sampling,
            self._stream,
            attempt,
        )
        rows = self._rows[draw.episodes]
        frames = np.empty((count, NUM_FRAMES, *index.frame_size, 3), np.uint8)
        unreadable = {}
        for position in range(count):
            view = self._views[draw.views[position]]
            try:
                for place, step in enumerate(draw.steps[position].tolist()):
                    frames[position, place] = self._frames.read(int(rows[position]), view, step)
            except UserError as error:
                unreadable[position] = str(error)
        starts = index.starts[rows]
        windows = starts[:, None, None] + draw.windows
        actions = starts[:, None] + draw.steps
        return {
            "frames": frames,
            "crops": draw.crops,
            "actions": self._signals(actions, self._action_columns),
            "window_states": self._signals(windows, self._state_columns),
            "window_actions": self._signals(windows[..., :-1], self._action_columns),
        }, unreadable

    def _signals(self, positions: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self._index.signals[positions[..., None], columns]


def _join(parts: list[dict[str, np.ndarray]], samples: list[int]) -> Batch:
    def tensor(key: str) -> torch.Tensor:
        arrays = [part[key] for part in parts if len(part[key])]
        return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))

    return Batch(
        frames=tensor("frames").permute(0, 1, 4, 2, 3),  # channels_last memory, as decoded
        crops=tensor("crops"),
        actions=tensor("actions"),
        window_states=tensor("window_states"),
        window_actions=tensor("window_actions"),
        samples=torch.tensor(samples),
    )


class ClipLoader:
    """Iterates over batches from a given sample on, endlessly, and keeps count of what broke.

    With several processes, each passes its `rank` and reads its contiguous share of every global
    batch of `batch_size` clips.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        config: DataConfig,
        batch_size: int,
        first_sample: int = 0,
        num_samples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ):
        """num_samples: stop after that many (validation); None = endless. Raises UserError."""
        if batch_size % world_size:
            raise UserError(f"batch_size={batch_size} does not divide by {world_size} processes")
        self.num_errors = 0
        self._config = config
        workers = config.workers
        self._loader = DataLoader(
            dataset,
            batch_sampler=_SampleNumbers(batch_size, first_sample, num_samples, rank, world_size),
            collate_fn=_as_loaded,
            num_workers=workers,
            prefetch_factor=config.prefetch if workers else None,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches. Raises UserError for an unreadable frame, or for too many of them."""
        for loaded in self._loader:
            self.num_errors += len(loaded.errors)
            if loaded.batch is None:
                raise UserError(loaded.errors[-1])
            for error in loaded.errors:
                print(f"skipped a sample ({self.num_errors} so far): {error}")
            if self.num_errors > self._config.max_errors:
                raise UserError(
                    f"{self.num_errors} unreadable samples, more than "
                    f"data.max_errors={self._config.max_errors}; the last: {loaded.errors[-1]}"
                )
            yield loaded.batch


def _as_loaded(loaded: Loaded) -> Loaded:
    return loaded  # a batch is whole already: nothing to collate


class _SampleNumbers:
    """The sample numbers of each batch of one process: its contiguous share of the global batch."""

    def __init__(
        self, batch_size: int, first: int, num_samples: int | None, rank: int, world_size: int
    ):
        self._batch_size, self._first, self._num_samples = batch_size, first, num_samples
        self._share = batch_size // world_size
        self._offset = rank * self._share

    def __iter__(self) -> Iterator[list[int]]:
        first = self._first
        while self._num_samples is None or first < self._first + self._num_samples:
            begin = first + self._offset
            yield list(range(begin, begin + self._share))
            first += self._batch_size
