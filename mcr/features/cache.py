"""Feature cache: a frozen encoder's answer to every frame of a data set, computed once.

    <cache>/features.npy    N steps of all episodes, V cameras: [N, V, D], spatial [N, V, D, h, w]
            features.json   what was computed, by what, from what: the cache's key
            episodes.csv    name, start, length: an episode's rows begin at start

`extract_features` writes it, `FeatureCache` reads it; both refuse one that was made by another
encoder or from other data. While it is written it is called <cache>.partial, and `done.txt` in it
lists the finished episodes, so that a killed run goes on where it was.

bfloat16, which NumPy lacks, is kept as uint16 bit patterns; readers get float32 in every case.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mcr.errors import UserError, nearest, require_choice
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
from mcr.runs.processes import num_cores, process_pool, progress_bar

FORMAT = "mcr-features-1"
CACHED_OUTPUTS = ("pooled", "spatial")
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}

_FEATURES, _DESCRIPTION, _EPISODES = "features.npy", "features.json", "episodes.csv"
_JOURNAL, _NETWORK = "done.txt", "network.onnx"  # only while it is written
_GPU_WORKERS = 4  # each decodes on a core and has a context on the GPU


@dataclass(frozen=True)
class FeatureConfig:
    """How features are computed and kept.

    output:     "pooled" or "spatial", as of `Encoder.features`
    dtype:      in which they are kept: fp32, fp16, bf16
    precision:  in which they are computed: fp32, or bf16 where it is faster and 1% may be lost
    engine:     "torch", "onnx" (ONNX Runtime on the CPU, equal to 1e-4), or "" for the faster one
    cameras:      cameras; () = all
    device:     of torch
    batch_size: pictures at a time; 0 = 128, on a CPU 8: more would fall out of its cache
    workers:    processes; 0 = one per core, on a GPU 4; 1 = this one
    """

    output: str = "pooled"
    dtype: str = "fp32"
    precision: str = "fp32"
    engine: str = ""
    cameras: tuple[str, ...] = ()
    device: str = "cpu"
    batch_size: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        require_choice("output", self.output, CACHED_OUTPUTS)
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("precision", self.precision, PRECISIONS)
        if self.engine:
            require_choice("engine", self.engine, ENGINES)
        if self.engine == "onnx" and (self.device, self.precision) != ("cpu", "fp32"):
            raise UserError("engine=onnx runs on the CPU in fp32; leave out device and precision")
        if self.batch_size < 0 or self.workers < 0:
            raise UserError("batch_size and workers must be at least 1, or 0 for the default")


# --------------------------------------------------------------------------- reading


class FeatureCache:
    """An opened cache. Cheap to open and to pickle: the array is mapped, not read."""

    def __init__(
        self,
        path: str | Path,
        encoder: Encoder | None = None,
        data_fingerprint: str | None = None,
    ):
        """Open a cache.

        encoder, data_fingerprint: what it is expected to be made by and from; None = not checked.
        Raises UserError if it is none, is unfinished, or was made by or from something else.
        """
        self.path = Path(path)
        self.description = _read_description(self.path)
        expected: dict[str, Any] = {}
        if encoder is not None:
            expected |= _encoder_key(encoder)
        if data_fingerprint is not None:
            expected["data"] = data_fingerprint
        if stale := _differences(self.description, expected):
            raise UserError(f"{self.path}: is of {stale}; extract the features again")

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureCache, (self.path,)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.description["cameras"])

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """One row per episode: name, start, length."""
        return pd.read_csv(self.path / _EPISODES, dtype={"name": str}, keep_default_na=False)

    @cached_property
    def array(self) -> np.ndarray:
        """Everything as it is stored, mapped: [N, V, D] or [N, V, D, h, w]; bf16 as uint16 bits."""
        return np.load(self.path / _FEATURES, mmap_mode="r")

    def features(
        self, episode: str | int, camera: str, steps: slice | Sequence[int] | int = slice(None)
    ) -> np.ndarray:
        """Features of some steps of an episode (name or row), float32 [..., D] or [..., D, h, w].

        The leading dimension is that of `steps`: none for a single one.
        Raises UserError for an unknown episode or camera, IndexError for a step beyond the episode.
        """
        row = self._row(episode) if isinstance(episode, str) else episode
        start, length = (int(self.episodes[key].iloc[row]) for key in ("start", "length"))
        rows = np.arange(start, start + length)[steps]
        column = self.cameras.index(require_choice("camera", camera, self.cameras))
        return _widened(self.array[rows, column], self.description["dtype"])

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise UserError(f"{self.path}: no episode {name!r}{nearest(name, self._rows)}")
        return self._rows[name]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.episodes["name"])}


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    if not path.is_file():
        begun = folder.with_name(f"{folder.name}.partial")
        hint = "; it was begun, type the same command to finish it" if begun.is_dir() else ""
        raise UserError(f"{folder}: is no feature cache{hint}")
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); delete the folder") from error
    if description.get("format") != FORMAT:
        raise UserError(
            f"{path}: has the format {description.get('format')!r}, not {FORMAT!r}; delete the "
            "folder and extract again"
        )
    if "views" in description:  # as cameras were called once
        description["cameras"] = description.pop("views")
    return description


def _widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(stored, np.float32)


def _narrowed(features: Tensor, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return features.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return (features.half() if dtype == "fp16" else features).numpy()  # NumPy's cast would warn


# --------------------------------------------------------------------------- what a cache is of


def weights_fingerprint(encoder: Encoder) -> str:
    """SHA-256 of all tensors and their names: the same whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encoder_key(encoder: Encoder) -> dict[str, Any]:
    return {
        "weights": weights_fingerprint(encoder),
        "encoder_config": encoder.preprocessing.encoder_config(encoder.backbone),
        "feature_norm": encoder.feature_norm,
    }


def _key(encoder: Encoder, recordings: Recordings, config: FeatureConfig) -> dict[str, Any]:
    """Everything that the numbers in a cache depend on."""
    return {
        **_encoder_key(encoder),
        "data": recordings.fingerprint,
        "cameras": list(require_cameras(recordings, config.cameras)),
        "output": config.output,
        "dtype": config.dtype,
        "precision": config.precision,
    }


def _differences(description: dict[str, Any], expected: dict[str, Any]) -> str:
    """ "another encoder (weights 1a2b.. , not 3c4d..)", or "" if there is none."""
    names = {"weights": "another encoder", "data": "other data"}
    found = [
        f"{names.get(key, f'another {key}')} ({_short(description.get(key))}, not {_short(value)})"
        for key, value in expected.items()
        if description.get(key) != value
    ]
    return " and ".join(found)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


# --------------------------------------------------------------------------- writing


def extract_features(
    encoder: str | Path, data: str | Path, out: str | Path, config: FeatureConfig | None = None
) -> FeatureCache:
    """Compute the features of all frames of `data` and write them to the folder `out`.

    encoder: what `load_model` takes; data: what `open_recordings` takes. A run that was killed goes
    on where it was; a finished cache is returned as it is.
    Raises UserError if `out` or what was begun there is of another encoder, data or config, and for
    unreadable data.
    """
    config, out = config or FeatureConfig(), Path(out)
    recordings = open_recordings(data)
    loaded = load_model(encoder, config.device)
    key = _key(loaded, recordings, config)
    if out.exists():
        if stale := _differences(_read_description(out), key):
            raise UserError(f"{out}: is of {stale}; choose another folder or delete it")
        return FeatureCache(out)
    partial = out.with_name(f"{out.name}.partial")
    if not (partial / _DESCRIPTION).is_file():
        about = {"encoder": str(encoder), "source": str(data)}  # for people; not compared
        _lay_out(partial, loaded, recordings, about | key)
    elif stale := _differences(_read_description(partial), key):
        raise UserError(f"{partial}: was begun with {stale}; delete it, or choose another folder")
    _run(make_job(partial, encoder, loaded, recordings, config))
    for scaffold in (_JOURNAL, _NETWORK):
        (partial / scaffold).unlink(missing_ok=True)
    partial.rename(out)
    return FeatureCache(out)


def _lay_out(
    folder: Path, encoder: Encoder, recordings: Recordings, description: dict[str, Any]
) -> None:
    """An empty cache; its description comes last and makes it one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    starts = np.cumsum([0, *recordings.lengths])
    table = {"name": recordings.names, "start": starts[:-1], "length": recordings.lengths}
    pd.DataFrame(table).to_csv(folder / _EPISODES, index=False)
    size = encoder.preprocessing.image_size
    pixels = torch.zeros(1, 3, size, size, device=next(encoder.parameters()).device)
    with torch.inference_mode():
        feature_shape = encoder.encode(pixels, description["output"]).shape[1:]
    shape = (int(starts[-1]), len(description["cameras"]), *feature_shape)
    np.lib.format.open_memmap(folder / _FEATURES, "w+", DTYPES[description["dtype"]], shape)
    text = json.dumps({"format": FORMAT, "shape": shape, **description}, indent=1)
    (folder / _DESCRIPTION).write_text(text + "\n")


def _todo(folder: Path, recordings: Recordings) -> list[int]:
    """Episodes that the journal does not list; a last line that was cut off is removed."""
    journal = folder / _JOURNAL
    journal.touch()
    text = journal.read_text()
    whole = text[: text.rfind("\n") + 1]
    os.truncate(journal, len(whole))
    done = {int(line) for line in whole.splitlines()}
    return [episode for episode in range(len(recordings.names)) if episode not in done]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; crosses a process border."""

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
    """Choose the engine and write what it needs. source: what `encoder` was loaded from."""
    engine = config.engine or fastest_engine(config.device, config.precision)
    if engine == "onnx":
        write_network(folder / _NETWORK, encoder, config.output)
    return Job(folder, str(source), encoder.preprocessing, recordings, config, engine)


def _run(job: Job) -> None:
    """Encode what the journal does not list, and list each episode when it is on disk."""
    todo = _todo(job.folder, job.recordings)
    num_frames = [len(job.cameras) * length for length in job.recordings.lengths]
    with (
        (job.folder / _JOURNAL).open("a") as journal,
        progress_bar(None, "features", "frames", sum(num_frames)) as bar,
    ):
        bar.update(sum(num_frames) - sum(num_frames[episode] for episode in todo))
        for episode in _encoded(job, todo):
            journal.write(f"{episode}\n")
            journal.flush()
            os.fsync(journal.fileno())
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
    # A process per core with one thread each: threads would share out single small layers.
    torch.set_num_threads(1)
    _worker = Worker(job, num_threads=1)


def _encode(episode: int) -> int:
    assert _worker is not None
    return _worker.encode(episode)


class Worker:
    """Encodes whole episodes into the mapped array."""

    def __init__(self, job: Job, num_threads: int):
        """num_threads: of ONNX Runtime; 0 = all cores."""
        self._job = job
        self._network = job.network(num_threads)
        self._array = np.lib.format.open_memmap(job.folder / _FEATURES, "r+")
        self._starts = np.cumsum([0, *job.recordings.lengths])

    def encode(self, episode: int) -> int:
        """Encode all cameras of an episode; what is written is on disk when this returns."""
        for column, camera in enumerate(self._job.cameras):
            row = self._starts[episode]
            frames_of_camera = self._job.recordings.frames(episode, camera)
            for frames in _batches(frames_of_camera, self._job.batch_size):
                self._array[row : row + len(frames), column] = self._features(frames)
                row += len(frames)
            assert row == self._starts[episode + 1], "frames() gives as many as lengths says"
        self._array.flush()
        return episode

    def _features(self, frames: list[np.ndarray]) -> np.ndarray:
        dtype, device = self._job.config.dtype, self._job.config.device
        # On a CPU one by one, in its cache; to a GPU in one piece if all are of one size.
        together = device != "cpu" and len({frame.shape for frame in frames}) == 1
        pixels = self._job.preprocessing(np.stack(frames) if together else frames, device)
        stored = _narrowed(self._network(pixels).cpu(), dtype)
        if not np.isfinite(_widened(stored, dtype)).all():
            raise UserError(f"features are not finite in {dtype}: too large for it? try fp32")
        return stored


def _batches(frames: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(frames, size)):
        yield batch
