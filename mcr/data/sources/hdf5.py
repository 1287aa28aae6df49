"""HDF5: robomimic's layout, and files with an episode each, such as ALOHA's.

    data/<episode>/actions, obs/<camera>, obs/<signal>      robomimic; mask/train, mask/valid
    observations/images/<camera>, observations/qpos, action ALOHA: the file is the episode

A camera is uint8 [T, H, W, 3], or encoded: T strings of JPEG or PNG bytes, which may be padded by
zeros. Other numbers of an observation and the action are signals. A schema may name any data set by
its path in the episode. Needs the extra `hdf5`.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import google_crc32c
import numpy as np

from mcr.data import pictures
from mcr.data.episode import Episode, Origin, Pictures
from mcr.data.hdf5 import SUFFIXES, natural_order
from mcr.data.schema import LANGUAGES, Schema, is_large, names_of
from mcr.data.sources.schema_check import Keys, choose_schema
from mcr.errors import UserError, import_extra

if TYPE_CHECKING:
    import h5py

_EPISODES_PER_PART = 32
_FRAMES_PER_READ = 64  # compressed chunks may span several frames
_BYTES_PER_READ = 1 << 22
_OBSERVED = ("obs/", "observations/", "observation/")
_ACTIONS = ("action", "actions")
_SEPARATOR = "::"  # between file and group in the key of an episode


class Hdf5Source:
    """A file, or a folder of files. Its parts are some episodes of a file."""

    kind: ClassVar = "hdf5"
    unit: ClassVar = "episodes"

    def __init__(self, path: Path, schema: Schema | None = None):
        self.path = path
        self.root = path if path.is_dir() else path.parent
        self.name = path.resolve().stem
        self._files = _files(path)
        self._episodes = {file: _episode_groups(file) for file in self._files}
        sample = next(((f, groups[0]) for f, groups in self._episodes.items() if groups), None)
        if sample is None:
            raise UserError(f"{path}: holds no episode (data/demo_0, or a file per episode)")
        found = _describe(*sample)
        keys = Keys([*found.cameras], [*found.signals], [*found.texts], ["train", "valid"])
        schema = choose_schema(path, self.name, schema, keys)
        if not keys.cameras:
            raise UserError(
                f"{sample[0]}, {sample[1] or 'the file'}: has no pictures (uint8 [T, H, W, 3] in "
                f"obs/ or observations/images/){found.hint}"
            )
        language = schema.language or tuple(sorted(found.texts))[: len(LANGUAGES)]
        self.schema = replace(schema, language=language, hz=schema.hz or found.hz)
        self.cameras = dict(schema.cameras) or {n: k for k, n in names_of(found.cameras).items()}

    @staticmethod
    def recognises(path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() in SUFFIXES
        return any(any(path.glob(pattern)) for s in SUFFIXES for pattern in (f"*{s}", f"*/*{s}"))

    def parts(self) -> list[Episodes]:
        return [
            Episodes(self.root, file, tuple(groups[i : i + _EPISODES_PER_PART]), self._layout(file))
            for file, groups in self._episodes.items()
            for i in range(0, max(1, len(groups)), _EPISODES_PER_PART)
        ]

    def _layout(self, file: Path) -> Layout:
        is_alone = len(self._files) == 1
        prefix = "" if is_alone else file.relative_to(self.root).with_suffix("").as_posix()
        return Layout(self.schema, self.cameras, prefix)

    def is_small(self) -> bool:
        return sum(len(groups) for groups in self._episodes.values()) <= _EPISODES_PER_PART

    def stamp(self) -> dict[str, int]:
        """The size of each file, and when it was last written."""
        return {
            f"{file.relative_to(self.root)} {what}": value
            for file in self._files
            for what, value in (
                ("bytes", file.stat().st_size),
                ("modified", file.stat().st_mtime_ns),
            )
        }

    def decoder(self) -> Hdf5Decoder:
        return Hdf5Decoder(self.root, self.cameras)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    return sorted(found, key=lambda file: natural_order(file.relative_to(path).as_posix()))


def _open(file: Path) -> h5py.File:
    """Open a file. Raises UserError if it is none that can be read."""
    hdf5 = import_extra("h5py", "hdf5")
    try:
        return hdf5.File(file, "r")
    except OSError as error:
        raise UserError(f"{file}: is no readable HDF5 file ({error})") from error


def _episode_groups(file: Path) -> list[str]:
    """Return the groups that are episodes; [""] if the file is one, [] if it cannot be read."""
    try:
        with _open(file) as opened:
            data = opened.get("data")
            hdf5 = import_extra("h5py", "hdf5")
            if isinstance(data, hdf5.Group) and "action" not in opened:
                return [f"data/{name}" for name in sorted(data, key=natural_order)]
            return [""]
    except UserError:
        return []  # the part that reads it reports it


# --------------------------------------------------------------------------- what an episode holds


@dataclass(frozen=True)
class Description:
    """The data sets of an episode: cameras, numbers of a step -> how many, texts."""

    cameras: tuple[str, ...]
    signals: dict[str, int]
    texts: tuple[str, ...]
    hz: float
    hint: str


def _describe(file: Path, group: str) -> Description:
    cameras, signals, hints = [], {}, []
    with _open(file) as opened:
        episode = opened[group] if group else opened
        for key, values in _data_sets(episode):
            if _is_camera(key, values):
                cameras.append(key)
            elif values.ndim == 4 and values.dtype == np.uint8:
                hints.append(f"; {key} is {values.shape}: store pictures as [T, H, W, 3]")
            elif values.ndim in (1, 2) and values.dtype.kind in "fiub":
                signals[key] = int(np.prod(values.shape[1:]))
        texts = tuple(key for key in _texts(episode))
        return Description(tuple(cameras), signals, texts, _rate(opened), "".join(hints[:1]))


def _data_sets(episode: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    hdf5, found = import_extra("h5py", "hdf5"), []

    def visit(key: str, item: Any) -> None:
        if isinstance(item, hdf5.Dataset) and not key.startswith("next_obs/"):
            found.append((key, item))

    episode.visititems(visit)
    return found


def _is_camera(key: str, values: h5py.Dataset) -> bool:
    if values.ndim == 4:
        return values.dtype == np.uint8 and values.shape[-1] == 3
    return "image" in key and _is_encoded(values)


def _is_encoded(values: h5py.Dataset) -> bool:
    """Are the pictures JPEG or PNG bytes, in rows that may be padded, or of variable length?"""
    if values.ndim == 2:
        return values.dtype == np.uint8 and values.shape[1] > 256
    return values.ndim == 1 and values.dtype.kind in "OSV"


def _texts(episode: h5py.Group) -> dict[str, str]:
    """Return attributes and scalar data sets that are texts and called like an instruction."""
    found = {key: value for key, value in episode.attrs.items() if isinstance(value, str)}
    for key, item in episode.items():
        if getattr(item, "shape", None) == () and item.dtype.kind in "OS":
            value = item[()]
            found[key] = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return {
        k: v for k, v in found.items() if any(w in k for w in ("instruction", "language", "task"))
    }


def _rate(file: h5py.File) -> float:
    """Return the rate that robomimic's description of the simulator says, or 0."""
    data = file.get("data")
    try:
        return float(json.loads(data.attrs["env_args"])["env_kwargs"]["control_freq"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0.0


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Layout:
    """prefix: of the episodes' names; "" if there is one file"""

    schema: Schema
    cameras: dict[str, str]
    prefix: str


@dataclass(frozen=True)
class Episodes:
    """Some episodes of a file."""

    root: Path
    file: Path
    groups: tuple[str, ...]
    layout: Layout

    @property
    def size(self) -> int:
        return max(1, len(self.groups))

    def episodes(self) -> Iterator[Episode | str]:
        try:
            opened = _open(self.file)
        except UserError as error:
            yield str(error)
            return
        with opened:
            splits = _splits(opened)
            for group in self.groups:
                split = splits.get(group.rpartition("/")[2], "")
                if self.layout.schema.splits and split not in self.layout.schema.splits:
                    continue
                try:
                    yield self._read(opened[group] if group else opened, group, split)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    yield f"{self.file}, {group or 'the episode'}: {error}"

    def _read(self, episode: h5py.Group, group: str, split: str) -> Episode:
        schema, data_sets = self.layout.schema, dict(_data_sets(episode))
        signals = _signals(data_sets, schema)
        present = {
            camera: data_sets[k] for camera, k in self.layout.cameras.items() if k in data_sets
        }
        lengths = {name: len(values) for name, values in signals.items()}
        lengths |= {camera: len(values) for camera, values in present.items()}
        if not present:
            raise ValueError(f"has none of the cameras {', '.join(self.layout.cameras)}")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"signals and pictures differ in length: {lengths}")
        length = next(iter(lengths.values()))
        if length == 0:
            raise ValueError("has no steps")
        where = self.file.relative_to(self.root).as_posix()
        name = "/".join(filter(None, (self.layout.prefix, group.rpartition("/")[2])))
        texts = _texts(episode)
        about = self.file.stat()
        whole = _checksum(self.file, about.st_size, about.st_mtime_ns)
        checksum = google_crc32c.extend(whole, group.encode())
        return Episode(
            key=f"{where}{_SEPARATOR}{group}",
            length=length,
            signals=signals,
            pictures={
                camera: Pictures(_size(values), checksum) for camera, values in present.items()
            },
            texts=tuple(texts.get(key, "") for key in schema.language),
            origin=Origin.of(schema.recording, where, name or self.file.stem, split),
        )


def _splits(file: h5py.File) -> dict[str, str]:
    """Return episode -> "train" or "valid", as robomimic's masks say."""
    return {
        name.decode() if isinstance(name, bytes) else str(name): split
        for split in ("train", "valid")
        if split in file.get("mask", {})
        for name in file["mask"][split][()]
    }


def _signals(data_sets: dict[str, h5py.Dataset], schema: Schema) -> dict[str, np.ndarray]:
    named = {*schema.signals, *schema.state, *schema.action}
    names = names_of(data_sets)
    signals = {}
    for key, values in data_sets.items():
        wanted = bool(named & {key, names[key]})
        usual = key.startswith(_OBSERVED) or key in _ACTIONS
        if values.ndim not in (1, 2) or values.dtype.kind not in "fiub" or _is_camera(key, values):
            continue
        if wanted or (usual and not is_large(int(np.prod(values.shape[1:])))):
            signals[names[key]] = values[()].astype(np.float32)
    return signals


def _size(values: h5py.Dataset) -> tuple[int, int]:
    if len(values) == 0:
        raise ValueError(f"{values.name} has no frames")
    if values.ndim == 4:
        return int(values.shape[1]), int(values.shape[2])
    return pictures.size_of(_encoded_bytes(values[0]))


def _encoded_bytes(value: Any) -> bytes:
    """Return the bytes of a picture without the zeros that fill its row."""
    return (value.tobytes() if isinstance(value, np.ndarray) else bytes(value)).rstrip(b"\0")


@functools.lru_cache(maxsize=4)
def _checksum(file: Path, size: int, modified_ns: int) -> int:
    """Return the CRC-32C of the file. `size` and `modified_ns` tell versions of it apart."""
    checksum = 0
    with file.open("rb") as opened:
        while block := opened.read(_BYTES_PER_READ):
            checksum = google_crc32c.extend(checksum, block)
    return checksum


class Hdf5Decoder:
    """Reads the pictures. The last file stays open."""

    def __init__(self, root: Path, cameras: dict[str, str]):
        self._root, self._cameras = root, cameras
        self._place, self._file = "", None

    def frames(self, key: str, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        place, _, group = key.partition(_SEPARATOR)
        if self._file is None or place != self._place:
            self.close()
            self._place, self._file = place, _open(self._root / place)
        name = f"{group}/{self._cameras[camera]}"
        try:
            values = self._file[name]
            for begin, end in _runs(steps):
                for frame in values[begin:end]:
                    yield frame if values.ndim == 4 else pictures.decode(_encoded_bytes(frame))
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{self._root / place}, {name}: cannot be read ({error})") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _runs(steps: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, one past the last) of the runs of consecutive steps, of a bounded length."""
    numbered = enumerate(steps)
    for _, run in itertools.groupby(
        numbered, lambda pair: (pair[1] - pair[0], pair[0] // _FRAMES_PER_READ)
    ):
        members = [step for _, step in run]
        yield members[0], members[-1] + 1
