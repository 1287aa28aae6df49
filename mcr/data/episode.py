"""Episode: one robot recording, in memory and as a folder of the PNG/pickle tree.

    <root>/<name>/<camera>/{0..T-1}.png | .jpg
                  language_instruction{,_2,_3}/0.txt
                  other_data.pkl        see `other_data`

`droid.py` makes episodes from shards, `extract.py` writes them here, `clean.py` and `index.py` read
them back. A folder appears whole or not at all. Pickles are read through an unpickler that admits
NumPy and builtin containers only: a downloaded tree cannot run code.
"""

from __future__ import annotations

import ctypes
import io
import itertools
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcr.errors import UserError

OTHER_DATA = "other_data.pkl"
LANGUAGES = ("language_instruction", "language_instruction_2", "language_instruction_3")
OBSERVATIONS = ("cartesian_position", "gripper_position", "joint_position")
FLAGS = ("is_first", "is_last", "is_terminal")
PARTIAL_PREFIX = ".partial-"  # a folder that is being written; no reader takes it for an episode

Ranges = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Episode:
    """One recording of T steps.

    payload:       the bytes that hold the encoded pictures
    frame_ranges:  camera -> (start, length) of each of T pictures in `payload`, int64 [T]
    signals:       "cartesian_position", "action", "action_dict/joint_velocity", ... -> float32
                   [T, D]; "discount", "reward" -> float32 [T]; "is_first", ... -> bool [T]
    languages:     "language_instruction{,_2,_3}" -> text, possibly empty
    file_path:     where the recording came from, as the data set states it (untrusted)
    """

    payload: bytes
    frame_ranges: dict[str, Ranges]
    signals: dict[str, np.ndarray]
    languages: dict[str, str]
    file_path: str
    recording_folderpath: str = ""

    @property
    def length(self) -> int:
        """T, the number of steps."""
        return len(self.signals["action"])

    def encoded_frame(self, camera: str, step: int) -> memoryview:
        """The picture of `camera` at `step` as it was stored (JPEG or PNG bytes), not copied."""
        starts, lengths = self.frame_ranges[camera]
        start = int(starts[step])
        return memoryview(self.payload)[start : start + int(lengths[step])]

    @property
    def origin(self) -> Origin:
        return Origin.parse(self.file_path)


@dataclass(frozen=True)
class Origin:
    """What a DROID `file_path` says: <prefix>/<lab>/<outcome>/<date>/<recording>/trajectory.h5."""

    lab: str
    outcome: str  # "success", "failure" or "" when the path does not say
    date: str
    recording: str

    @classmethod
    def parse(cls, file_path: str) -> Origin:
        """Split an untrusted path. Raises ValueError if its name could leave the tree's root."""
        parts = file_path.replace("\\", "/").split("/")
        if len(parts) < 3:
            raise ValueError(f"file_path {file_path!r} has fewer than three components")
        date, recording = parts[-3], parts[-2]
        for part in (date, recording):
            if part in ("", ".", "..") or part.startswith(".") or not part.isprintable():
                raise ValueError(f"file_path {file_path!r} has an unsafe component {part!r}")
        if len(f"{date}_{recording}".encode()) > 200:
            raise ValueError(f"file_path {file_path!r} makes a folder name of over 200 bytes")
        lab, outcome = ([""] * 2 + parts)[-5:-3]
        return cls(lab, outcome if outcome in ("success", "failure") else "", date, recording)

    @property
    def name(self) -> str:
        """Folder name of the episode. ':' is not allowed on every file system: '_' instead."""
        return f"{self.date}_{self.recording}".replace(":", "_")

    @property
    def session(self) -> str:
        """One robot on one day: scenes and lights hardly change, so a split must not cut it."""
        return f"{self.lab}/{self.date}"


def unique_names(file_paths: list[str]) -> list[str]:
    """Folder names for all recordings of a data set, in order, each name once.

    The name is the two components before `trajectory.h5`; recordings that share it (same second,
    two labs) get their lab appended, and a counter if that does not tell them apart either.
    Upstream: whichever came second was silently dropped.

    A pure function of the whole list, so that any split of the work gives the same names. A path
    that cannot be used gets an empty name: its record is reported when it is read.
    """
    origins = [_origin_or_none(path) for path in file_paths]
    names = [origin.name if origin else "" for origin in origins]
    for positions in _sharing(names):
        for position in positions:
            names[position] = _with_lab(names[position], origins[position])
    taken = {name.casefold() for name in names}
    for positions in _sharing(names):
        for position in positions[1:]:
            names[position] = _with_counter(names[position], taken)
    return names


def _sharing(names: list[str]) -> list[list[int]]:
    """Groups of positions whose names are the same on a file system that ignores case."""
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        if name:
            groups.setdefault(name.casefold(), []).append(position)
    return [positions for positions in groups.values() if len(positions) > 1]


def _origin_or_none(file_path: str) -> Origin | None:
    try:
        return Origin.parse(file_path)
    except ValueError:
        return None


def _with_lab(name: str, origin: Origin | None) -> str:
    lab = origin.lab if origin else ""
    return f"{name}_{lab}" if lab.isalnum() and len(lab.encode()) <= 40 else name


def _with_counter(name: str, taken: set[str]) -> str:
    """`name_2`, `name_3`, ...: the first that is free, which it then takes."""
    numbered = (f"{name}_{count}" for count in itertools.count(2))
    free = next(candidate for candidate in numbered if candidate.casefold() not in taken)
    taken.add(free.casefold())
    return free


# --------------------------------------------------------------------------- writing


def other_data(episode: Episode) -> dict[str, Any]:
    """The content of `other_data.pkl`, as upstream's script lays it out.

    "cartesian_position" (6), "gripper_position" (1), "joint_position" (7), "action" (7): lists of
    T float64 arrays; "action_dict": list of T dicts of arrays; "discount", "is_first", "is_last",
    "is_terminal": lists of T scalars. Kept beyond upstream: "reward", "lab", "outcome",
    "file_path". The file holds float32 values: DROID's shards do, whatever their schema says.
    """
    signals = episode.signals
    commands = {
        key.removeprefix("action_dict/"): value
        for key, value in signals.items()
        if key.startswith("action_dict/")
    }
    data: dict[str, Any] = {
        key: list(value.astype(np.float64))
        for key, value in signals.items()
        if value.ndim == 2 and not key.startswith("action_dict/")
    }
    data["action_dict"] = [
        {key: value[step].astype(np.float64) for key, value in commands.items()}
        for step in range(episode.length)
    ]
    data |= {key: value.tolist() for key, value in signals.items() if value.ndim == 1}
    origin = episode.origin
    return data | {"lab": origin.lab, "outcome": origin.outcome, "file_path": episode.file_path}


def write_episode(
    root: Path,
    name: str,
    episode: Episode,
    cameras: tuple[str, ...],
    encode: Callable[[memoryview], bytes],
    suffix: str,
) -> None:
    """Write `<root>/<name>`: complete and on disk before it gets its name.

    `encode` turns the stored picture into the bytes of a file with this `suffix`. A leftover of a
    killed run is replaced. Raises OSError (disk full, ...) leaving nothing of this episode behind,
    and ValueError naming camera and step if `encode` does.
    """
    partial = root / f"{PARTIAL_PREFIX}{name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for camera in cameras:
            folder = partial / camera
            folder.mkdir(parents=True)
            for step in range(episode.length):
                try:
                    data = encode(episode.encoded_frame(camera, step))
                except ValueError as error:
                    raise ValueError(f"{camera} at step {step}: {error}") from error
                (folder / f"{step}{suffix}").write_bytes(data)
        for key, text in episode.languages.items():
            (partial / key).mkdir()
            (partial / key / "0.txt").write_text(text, encoding="utf-8")
        with (partial / OTHER_DATA).open("wb") as file:
            _PortablePickler(file, protocol=4).dump(other_data(episode))
        _sync(partial)
        partial.rename(root / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    """Force a folder's files to disk, so that a power cut cannot leave a whole name half empty.

    One `syncfs` for the file system instead of one `fsync` per picture: those cost a fifth of the
    CPU time of an extraction, and on spinning disks most of its wall time.
    """
    if _syncfs is None:
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _syncfs(handle) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
    finally:
        os.close(handle)


_syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)  # Linux; Python has no name


class _PortablePickler(pickle.Pickler):
    """Arrays as `numpy.frombuffer(bytes, dtype)`: the same bytes load under NumPy 1 and 2.

    NumPy's own reduction names a private module that moved between the two.
    """

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, np.ndarray) and obj.ndim == 1:
            return np.frombuffer, (obj.tobytes(), obj.dtype.str)
        return NotImplemented


# --------------------------------------------------------------------------- reading


def read_other_data(path: Path) -> dict[str, Any]:
    """Load `other_data.pkl` safely. Raises UserError; never executes anything from the file."""
    try:
        data = _SafeUnpickler(io.BytesIO(path.read_bytes())).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path}: damaged pickle ({type(error).__name__}: {error})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, not a dict of lists")
    return data


_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy", "frombuffer"),
    ("_codecs", "encode"),  # how protocol 2 stores bytes
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")  # NumPy 1, NumPy 2
        for module, name in [
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        ]
    ),
}


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise UserError(
                f"refuses to load {module}.{name}: only NumPy arrays and builtin containers are "
                "admitted, so this is no episode of a robot data set; nothing was executed"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
