"""Loader: index and recipe -> batches. The stream is the same for any number of workers and ranks.

A worker draws, reads and packs a whole batch per call. Only frames are handled one by one in
Python. An unreadable frame raises no exception in a worker. It is reported with the batch, so that
the run can count it and go on, or stop with one sentence.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mcr.data.batch import ALL_FRAMES, UNNAMED, Batch, Dimensions, MixedBatch
from mcr.data.frames import FrameReader
from mcr.data.index import Index
from mcr.data.loader_faults import watched
from mcr.data.sampling import TRAIN, SamplingConfig, draw_samples
from mcr.data.selection import Episodes, SelectionConfig
from mcr.data.spaces import ACTION_SPACES, MOTION, ROTATIONS, action_space, signal_space
from mcr.errors import UserError, require_choice
from mcr.runs.ranges import ANY_TEXT, MAPPING, NAMES, check_fields, choice, whole

_MAX_ATTEMPTS = 20  # redraws of one sample; after that the run stops


@dataclass
class DataConfig:
    """Where the data is and how it is read.

    root:         a data set of any format: RLDS shards, a LeRobot data set, HDF5, a PNG/pickle
                  tree, videos or pictures: see docs/data.md
    schema:       name of a schema in cfgs/data/, or a YAML file; "" = the one that is known of the
                  data set, if there is one
    index:        folder of the index; "" = `<root>.index`, built on first use
    cameras:      cameras to sample from; each clip is of one of them; [] = the schema's
    state_keys:   signals that are concatenated to the states of a window; [] = the schema's
    action_space: default (the schema's action), cartesian_position, cartesian_velocity,
                  joint_position, joint_velocity, delta or motion: see `mcr/data/spaces.py`
    rotation:     how rotations in states and actions are written, where the schema says that there
                  are any: "6d", or "euler" angles, which jump at +-pi (DROID's gripper points down,
                  where its roll is about pi)
    pack:         for video, HDF5 and parquet: decode all pictures once, into a pack beside the
                  index; false = decode them as they are drawn, which is 10 to 100 times slower
    workers:      number of loader processes; 0 reads in the training process
    prefetch:     batches that each worker keeps ready
    timeout_s:    seconds to wait for a batch; after that the run stops, because a loader process
                  hangs, for example at a network file system that does not answer
    on_error:     "raise" stops at the first unreadable frame; "skip" draws that sample again
    max_errors:   with "skip": the run stops after more unreadable samples than this
    skip_unread_frames: do not read frames that no active loss uses, such as START and END without
                  action prediction. Batch norm then sees the others only
    mix:          several data sets instead of `root`, by name: see `mcr/data/mixture.py`
    mix_multiple: with `mix`: the clips of each data set in a batch are a multiple of this number
    """

    root: Annotated[str, ANY_TEXT] = ""
    schema: Annotated[str, ANY_TEXT] = ""
    index: Annotated[str, ANY_TEXT] = ""
    cameras: Annotated[list[str], NAMES] = field(default_factory=list)
    state_keys: Annotated[list[str], NAMES] = field(default_factory=list)
    action_space: Annotated[str, choice((*ACTION_SPACES, MOTION))] = "default"
    rotation: Annotated[str, choice(ROTATIONS)] = "6d"
    pack: bool = True
    workers: Annotated[int, whole(0, 1024)] = 4
    prefetch: Annotated[int, whole(1)] = 4
    timeout_s: Annotated[int, whole(1)] = 1800
    on_error: Annotated[str, choice(("raise", "skip"))] = "raise"
    max_errors: Annotated[int, whole(0)] = 100
    skip_unread_frames: bool = False
    mix: Annotated[dict[str, Any], MAPPING] = field(default_factory=dict)
    mix_multiple: Annotated[int, whole(1)] = 1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        check_fields(self, "data.")


@dataclass
class Loaded:
    """A batch, and a sentence for each sample that could not be read.

    batch: None if the run must stop
    """

    batch: Batch | None
    errors: list[str]

    def pin_memory(self) -> Loaded:
        return Loaded(self.batch.pin_memory() if self.batch else None, self.errors)


class ClipDataset:
    """Maps sample numbers to a `Batch`. It is cheap to send to a worker: files are opened lazily.

    Frames of different sizes lie in the upper left corner of their place in a batch; the rest of it
    is 0 and is never read, because crop boxes lie within the frames.

    Raises UserError at construction for a camera or signal that the data set lacks.
    """

    def __init__(
        self,
        index: Index,
        episodes: Episodes,
        config: DataConfig,
        seed: int,
        stream: int = TRAIN,
        frames: FrameReader | None = None,
        places: Sequence[int] = ALL_FRAMES,
    ):
        """
        episodes: the episodes to draw from, see `select_episodes`
        frames:   reads the frames; None = from the data set itself
        places:   which of the five frames of a clip are read, in order of time
        """
        cameras = tuple(config.cameras) or index.default_cameras
        for camera in cameras:
            require_choice("data.cameras", camera, index.cameras)
        self.state_space = signal_space(index, tuple(config.state_keys), config.rotation)
        self.action_space = action_space(index, config.action_space, config.rotation)
        self._index, self._config = index, config
        self._frames = frames or FrameReader(index)
        self._seed, self._stream, self._places = seed, stream, list(places)
        self._cameras = [index.cameras.index(camera) for camera in cameras]
        sizes = np.asarray(self._frames.sizes)[episodes.rows][:, self._cameras]
        sees = (sizes[:, :, 0] > 0).any(axis=1)
        self._episodes, self._sizes = episodes.of(sees), sizes[sees]
        if len(self._episodes) == 0:
            raise UserError(
                f"{index.source}: no episode to draw samples from has a camera of "
                f"data.cameras={list(cameras)}"
            )
        self._lengths = np.asarray(index.lengths)[self._episodes.rows]

    @property
    def dimensions(self) -> Dimensions:
        return Dimensions(
            state=self.state_space.size,
            action=self.action_space.size,
            window=self._config.sampling.window,
            chunk=self._config.sampling.action_chunk,
        )

    def load(self, samples: list[int], frames: Tensor | None = None) -> Loaded:
        """Return the batch of the consecutive sample numbers `samples`.

        frames: memory to decode into, uint8 [B, G, H, W, 3]; the batch shares it
        """
        if frames is None:
            frames = torch.empty(self.frames_shape(len(samples)), dtype=torch.uint8)
        arrays, unreadable = self._read(samples[0], frames.numpy(), attempt=0)
        errors: list[str] = []
        for position, problem in unreadable.items():
            redrawn = self._redraw(samples[position], problem, errors)
            if redrawn is None:
                return Loaded(None, errors)
            for key, array in arrays.items():
                array[position] = redrawn[key][0]
        del arrays["frames"]  # the same memory as `frames`
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        channels_first = rearrange(frames, "b f h w c -> b f c h w")  # a view: memory as decoded
        batch = Batch(frames=channels_first, samples=torch.tensor(samples), **tensors)
        return Loaded(batch, errors)

    def frames_shape(self, count: int) -> tuple[int, ...]:
        """Return the shape of the frames of `count` clips in memory, [B, G, H, W, 3]."""
        height, width = self._sizes.max(axis=(0, 1)).tolist()
        return (count, len(self._places), height, width, 3)

    def _redraw(self, sample: int, problem: str, errors: list[str]) -> dict[str, np.ndarray] | None:
        """Draw an unreadable sample again. The new draw is a pure function of its number, too."""
        frames = np.empty(self.frames_shape(1), np.uint8)
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            errors.append(problem)
            if self._config.on_error == "raise":
                return None
            arrays, unreadable = self._read(sample, frames, attempt)
            if not unreadable:
                return arrays
            problem = unreadable[0]
        return None

    def _read(
        self, first: int, frames: np.ndarray, attempt: int
    ) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Return the arrays of the samples from `first` on, and why some could not be read.

        The second result maps positions in the batch to sentences.
        """
        index, count = self._index, len(frames)
        draw = draw_samples(
            self._seed,
            first,
            count,
            self._lengths,
            self._sizes,
            self._config.sampling,
            self._stream,
            attempt,
            self._episodes.kept,
        )
        rows = self._episodes.rows[draw.episodes]
        unreadable = {}
        for position in range(count):
            camera = self._cameras[draw.cameras[position]]
            try:
                for place, step in enumerate(draw.steps[position, self._places].tolist()):
                    self._frames.read(int(rows[position]), camera, step, frames[position, place])
            except UserError as error:
                unreadable[position] = str(error)
        starts = index.starts[rows]
        windows = starts[:, None, None] + draw.windows
        chunks = starts[:, None, None] + draw.chunks
        signals = index.signals
        return {
            "frames": frames,
            "crops": draw.crops[:, self._places],
            "colors": draw.colors[:, self._places],
            "actions": rearrange(self.action_space.read(signals, chunks), "n f k a -> n f (k a)"),
            "window_states": self.state_space.read(signals, windows),
            "window_actions": self.action_space.read(signals, windows[..., :-1]),
        }, unreadable


class _ClipsThroughSharedMemory(Dataset):
    """The data sets of a loader process, which decodes into shared memory that it reuses.

    New shared memory for every batch costs as much as decoding the frames: one page fault per
    4 KiB. The receiver copies or pins a batch before it asks for `num_buffers` further ones, so the
    buffer of that batch is free by then.
    """

    def __init__(self, data_sets: Mapping[str, ClipDataset], num_buffers: int):
        self._data_sets, self._num_buffers = data_sets, num_buffers
        self._buffers: dict[str, deque[Tensor]] = {name: deque() for name in data_sets}

    def __getitems__(self, samples: dict[str, list[int]]) -> dict[str, Loaded]:
        return {name: self._load(name, numbers) for name, numbers in samples.items()}

    def _load(self, name: str, samples: list[int]) -> Loaded:
        clips, buffers = self._data_sets[name], self._buffers[name]
        if get_worker_info() is None:
            return clips.load(samples)
        if len(buffers) < self._num_buffers:
            shape = clips.frames_shape(len(samples))
            buffers.append(torch.empty(shape, dtype=torch.uint8).share_memory_())
        buffers.rotate(1)
        return clips.load(samples, buffers[0])


class MixtureLoader:
    """Iterates over batches of several data sets, and counts what could not be read.

    Every batch holds the same number of consecutive clips of each data set. The clips of a run are
    numbered through: batch b holds the numbers from b * (clips of a batch) on, and the data sets
    take them in the order of `counts`. So each clip is a function of (seed, its number) alone, and
    no two clips are drawn from the same random numbers.

    Each of several training processes passes its `rank`. It reads a contiguous share of the clips
    of each data set.
    """

    def __init__(
        self,
        data_sets: Mapping[str, ClipDataset],
        counts: Mapping[str, int],
        config: DataConfig,
        first_sample: int = 0,
        num_samples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ):
        """
        counts:       clips of each data set in a batch, over all processes
        config:       its workers, prefetch and max_errors are used
        first_sample: number of the first clip of the first batch
        num_samples:  stop after this number of clips (validation); None = never stop

        Raises UserError if the processes cannot share a batch equally.
        """
        for name, count in counts.items():
            if count % world_size:
                what = f"the {count} clips of {name}" if name else f"batch_size={count}"
                fix = "; set data.mix_multiple to the number of processes" if name else ""
                raise UserError(f"{what} do not divide by {world_size} processes{fix}")
        self.num_errors = 0
        self._config = config
        workers = config.workers
        # torch allows any object as the samples of a batch, but its types ask for a list.
        samples: Any = _SampleNumbers(counts, first_sample, num_samples, rank, world_size)
        # Of each worker: the batches that are ready, one at the receiver, and one being decoded.
        num_buffers = config.prefetch + 2
        self._lives_in_buffers = workers > 0 and not pin_memory
        self._loader = DataLoader(
            _ClipsThroughSharedMemory(data_sets, num_buffers),
            batch_sampler=samples,
            collate_fn=_as_loaded,
            num_workers=workers,
            prefetch_factor=config.prefetch if workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the default one would shift the model's random stream
            worker_init_fn=_outlive_sigterm,
        )

    def __iter__(self) -> Iterator[MixedBatch]:
        """Yield batches.

        Raises UserError at the first unreadable frame, or at too many of them, and if a loader
        process dies, or hangs for data.timeout_s.
        """
        for loaded in watched(self._loader, self._config.timeout_s):
            yield {name: self._checked(part) for name, part in loaded.items()}

    def _checked(self, loaded: Loaded) -> Batch:
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
        return _copy_frames(loaded.batch) if self._lives_in_buffers else loaded.batch


class ClipLoader:
    """Iterates over batches of one data set from a given sample on."""

    def __init__(self, dataset: ClipDataset, config: DataConfig, batch_size: int, **options: Any):
        """batch_size: clips over all processes; options: those of MixtureLoader"""
        self._mixture = MixtureLoader({UNNAMED: dataset}, {UNNAMED: batch_size}, config, **options)

    @property
    def num_errors(self) -> int:
        return self._mixture.num_errors

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches. Raises UserError at the first unreadable frame, or at too many of them."""
        for batches in self._mixture:
            yield batches[UNNAMED]


_GRACE_S = 60


def _outlive_sigterm(worker: int) -> None:
    """Let a loader process go on for a minute after SIGTERM.

    Schedulers send SIGTERM to every process of a job. The training process needs batches until its
    current step is over and then saves; with the loader dead it would end by an error instead.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(_GRACE_S))


def _copy_frames(batch: Batch) -> Batch:
    # NumPy asks for huge pages, so it has a tenth of the page faults of torch's clone.
    frames = rearrange(batch.frames, "b f c h w -> b f h w c").numpy().copy()
    return replace(batch, frames=rearrange(torch.from_numpy(frames), "b f h w c -> b f c h w"))


def _as_loaded(loaded: Any) -> Any:
    return loaded  # it is a whole batch already


class _SampleNumbers:
    """Yields the sample numbers of each batch of one process, for each data set.

    They are the process's share of the global batch.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        first: int,
        num_samples: int | None,
        rank: int,
        world_size: int,
    ):
        self._batch_size = sum(counts.values())
        self._first, self._num_samples = first, num_samples
        self._places: dict[str, tuple[int, int]] = {}  # begin in the global batch, and number
        begin = 0
        for name, count in counts.items():
            share = count // world_size
            self._places[name] = begin + rank * share, share
            begin += count

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        first = self._first
        while self._num_samples is None or first < self._first + self._num_samples:
            yield {
                name: list(range(first + begin, first + begin + share))
                for name, (begin, share) in self._places.items()
            }
            first += self._batch_size
