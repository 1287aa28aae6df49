"""Extraction: an encoder and data -> a feature cache, by several processes, resumable.

`extract_features` is what `mcr features`, behaviour cloning and the evaluation call.
`encode_frames` is the loop that `mcr.robomimic.cached_features` shares with it. How a cache lies on
disk is in `cache`; what makes one stale is in `key`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from mcr.data.schema import Schema
from mcr.errors import UserError
from mcr.features import cache
from mcr.features.cache import CACHED_OUTPUTS, DTYPES, FeatureCache, from_stored, to_stored
from mcr.features.key import differences, encoder_key
from mcr.features.recordings import Recordings, open_recordings, require_cameras
from mcr.models.encoder import Encoder
from mcr.models.inference import (
    ENGINES,
    PRECISIONS,
    Network,
    fastest_engine,
    torch_network,
)
from mcr.models.loading import load_model
from mcr.models.onnx_file import onnx_network, write_network
from mcr.models.preprocessing import Preprocessing
from mcr.runs.locks import exclusive
from mcr.runs.processes import num_cores, process_pool, progress_bar
from mcr.runs.ranges import DEVICE, NAMES, check_fields, choice, optional, whole

_NETWORK = "network.onnx"  # lies in the cache while it is written
_GPU_WORKERS = 4  # each decodes on a core of its own and has a context on the GPU


@dataclass(frozen=True)
class FeatureConfig:
    """How features are computed and stored.

    output:     "pooled" or "spatial", as in `Encoder.features`
    dtype:      of the stored features: fp32, fp16, bf16
    precision:  of the computation: fp32, or bf16, which is faster on some processors and changes
                features by about 1%
    engine:     "torch", "onnx" (ONNX Runtime on the CPU, equal to 1e-4), or "" for the faster one
    cameras:    () = all
    device:     torch's
    batch_size: frames at a time; 0 = 128, on a CPU 8, because more would not fit into its cache
    workers:    processes; 0 = one per core, on a GPU 4; 1 = this process alone
    """

    output: Annotated[str, choice(CACHED_OUTPUTS)] = "pooled"
    dtype: Annotated[str, choice(DTYPES)] = "fp32"
    precision: Annotated[str, choice(PRECISIONS)] = "fp32"
    engine: Annotated[str, optional(choice(ENGINES))] = ""
    cameras: Annotated[tuple[str, ...], NAMES] = ()
    device: Annotated[str, DEVICE] = "cpu"
    batch_size: Annotated[int, whole(0, note="0 is the default")] = 0
    workers: Annotated[int, whole(0, 1024, note="0 is the default")] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.engine == "onnx" and (self.device, self.precision) != ("cpu", "fp32"):
            raise UserError("engine=onnx runs on the CPU in fp32; leave out device and precision")


def extract_features(
    encoder: str | Path,
    data: str | Path,
    out: str | Path,
    config: FeatureConfig | None = None,
    index: str | Path | None = None,
    schema: str | Path | Schema | None = None,
) -> FeatureCache:
    """Compute the features of all frames of `data` and write them to the folder `out`.

    A run that was killed is continued. A finished cache is returned as it is. If another process
    computes the same cache, this waits for it.

    encoder: what `load_model` takes
    data:    a data set of any format
    index, schema: as for `mcr.data.index.open_index`
    Raises UserError if `out` was made by another encoder, from other data or with other options,
    and if the data cannot be read. What was begun so and never finished does not hinder.
    """
    config, out = config or FeatureConfig(), Path(out)
    recordings = open_recordings(data, index, schema)
    loaded = load_model(encoder, config.device)
    key = {
        **encoder_key(loaded),
        "data": recordings.fingerprint,
        "cameras": list(require_cameras(recordings, config.cameras)),
        "output": config.output,
        "dtype": config.dtype,
        "precision": config.precision,
    }
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(out):
            if not out.exists():  # another process has not finished it meanwhile
                partial = cache.partial_folder(out, key)
                if not cache.is_begun(partial):
                    about = {"encoder": str(encoder), "source": str(data)}  # for people
                    shape = feature_shape(loaded, config.output)
                    cache.create(partial, recordings.names, recordings.lengths, shape, about | key)
                run(make_job(partial, encoder, loaded, recordings, config))
                (partial / _NETWORK).unlink(missing_ok=True)
                cache.finish(partial, out)
    if stale := differences(cache.read_description(out), key):
        raise UserError(f"{out}: is of {stale}; choose another folder or delete it")
    return FeatureCache(out)


def feature_shape(encoder: Encoder, output: str) -> tuple[int, ...]:
    """Shape of one picture's features: [D], or [D, h, w] for output="spatial"."""
    size = encoder.preprocessing.image_size
    pixels = torch.zeros(1, 3, size, size, device=next(encoder.parameters()).device)
    with torch.inference_mode():
        return tuple(encoder.encode(pixels, output).shape[1:])


def encode_frames(
    network: Network,
    preprocessing: Preprocessing,
    frames: Iterable[np.ndarray],
    batch_size: int,
    device: str = "cpu",
    together: bool = False,
) -> Iterator[Tensor]:
    """Features of frames batch by batch, on the CPU.

    network:  normalised pixels float32 [B, 3, S, S] on `device` -> features [B, ...]
    frames:   uint8 [H, W, 3] each; they may differ in size
    together: prepare frames of one size in one piece, which is fast on a GPU; a CPU is faster one
              by one, because one frame fits into its cache. Features differ by rounding.
    """
    frames = iter(frames)
    while batch := list(islice(frames, batch_size)):
        one_size = len({frame.shape for frame in batch}) == 1
        pixels = preprocessing(np.stack(batch) if together and one_size else batch, device)
        yield network(pixels).cpu()


# --------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; it can be sent to another process.

    folder: of the cache that is being written; encoder: what `load_model` takes
    """

    folder: Path
    encoder: str
    preprocessing: Preprocessing
    recordings: Recordings
    config: FeatureConfig
    engine: str

    @property
    def cameras(self) -> tuple[str, ...]:
        return require_cameras(self.recordings, self.config.cameras)

    @property
    def num_workers(self) -> int:
        default = num_cores() if self.config.device == "cpu" else min(num_cores(), _GPU_WORKERS)
        return self.config.workers or default

    @property
    def batch_size(self) -> int:
        return self.config.batch_size or (8 if self.config.device == "cpu" else 128)

    def network(self, num_threads: int) -> Network:
        """num_threads: of ONNX Runtime; 0 = one per core."""
        if self.engine == "onnx":
            return onnx_network(self.folder / _NETWORK, num_threads)
        encoder = load_model(self.encoder, self.config.device)
        return torch_network(encoder, self.config.output, self.config.precision)


def make_job(
    folder: Path,
    source: str | Path,
    encoder: Encoder,
    recordings: Recordings,
    config: FeatureConfig,
) -> Job:
    """Choose the engine, and write the file that it needs.

    source: what `encoder` was loaded from
    """
    engine = config.engine or fastest_engine(config.device, config.precision)
    if engine == "onnx":
        write_network(folder / _NETWORK, encoder, config.output)
    return Job(folder, str(source), encoder.preprocessing, recordings, config, engine)


def run(job: Job) -> None:
    """Encode the episodes that the journal does not list, and list each when it is on disk."""
    num_frames = [len(job.cameras) * length for length in job.recordings.lengths]
    with (
        cache.Journal(job.folder) as journal,
        progress_bar(None, "features", "frames", sum(num_frames)) as bar,
    ):
        todo = [episode for episode in range(len(num_frames)) if episode not in journal.done]
        bar.update(sum(num_frames) - sum(num_frames[episode] for episode in todo))
        for episode in _encoded(job, todo):
            journal.add(episode)
            bar.update(num_frames[episode])


def _encoded(job: Job, todo: list[int]) -> Iterator[int]:
    """Episodes as they are finished."""
    workers = min(job.num_workers, len(todo))
    if workers <= 1:
        worker = Worker(job, num_threads=0)
        yield from map(worker.encode, todo)
        return
    reassurance = "; what is done is kept, type the same command to go on"
    with process_pool(workers, reassurance, _start_worker, (job,)) as pool:
        for future in as_completed([pool.submit(_encode, episode) for episode in todo]):
            yield future.result()


_worker: Worker | None = None  # of this process, in a pool


def _start_worker(job: Job) -> None:
    global _worker
    # There is one process per core, so each gets one thread.
    torch.set_num_threads(1)
    _worker = Worker(job, num_threads=1)


def _encode(episode: int) -> int:
    assert _worker is not None
    return _worker.encode(episode)


class Worker:
    """Encodes whole episodes into the mapped array."""

    def __init__(self, job: Job, num_threads: int):
        """num_threads: of ONNX Runtime; 0 = one per core."""
        self._job = job
        self._network = job.network(num_threads)
        self._array = cache.open_array(job.folder)
        self._starts = np.cumsum([0, *job.recordings.lengths])

    def encode(self, episode: int) -> int:
        """Encode all cameras of an episode. Its features are on disk when this returns.

        Features of a camera that the episode lacks are 0.
        """
        job, config = self._job, self._job.config
        for column, camera in enumerate(job.cameras):
            row = self._starts[episode]
            if not job.recordings.has(episode, camera):
                self._array[row : self._starts[episode + 1], column] = 0
                continue
            for features in encode_frames(
                self._network,
                job.preprocessing,
                job.recordings.frames(episode, camera),
                job.batch_size,
                config.device,
                together=config.device != "cpu",
            ):
                stored = to_stored(features, config.dtype)
                if not np.isfinite(from_stored(stored, config.dtype)).all():
                    raise UserError(
                        f"features are not finite in {config.dtype}: too large for it? try fp32"
                    )
                self._array[row : row + len(stored), column] = stored
                row += len(stored)
            assert row == self._starts[episode + 1], "frames() gives as many as lengths says"
        self._array.flush()
        return episode
