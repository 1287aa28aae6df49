"""The PNG/pickle tree: a folder per episode, a folder per camera in it, a file per frame.

    <root>/<episode>/<camera>/{0..T-1}.png | .jpg | .jpeg      any names; numbers in order
                     language_instruction{,_2,_3}/0.txt        optional
                     other_data.pkl                            signals, see `other_data.py`

`tree_writing.py` writes trees. `clean.py` judges them file by file and has a reader of its own for
that. Every episode hands out the cameras and signals that it has, so an odd one costs only itself.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np

from mcr.data import pictures
from mcr.data.episode import FLAGS, Episode, Origin, Pictures
from mcr.data.hdf5 import natural_order
from mcr.data.other_data import OTHER_DATA, read_other_data
from mcr.data.schema import LANGUAGES, Schema, is_large
from mcr.data.sources.schema_check import Keys, choose_schema
from mcr.errors import UserError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FILE_PATH = "episode_metadata/file_path"  # how schemas call it; here it is an entry of the pickle
_EPISODES_PER_PART = 64
_PROBED_EPISODES = 20  # tell which schema a tree has
_LOOKED_AT = 1000  # folders in which a pickle is looked for
_UPSTREAMS_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})_.+")


class TreeSource:
    """The root of a tree. Its parts are handfuls of episode folders."""

    kind: ClassVar = "tree"
    unit: ClassVar = "episodes"

    def __init__(self, path: Path, schema: Schema | None = None):
        self.path = self.root = path
        self.name = path.resolve().name
        cameras: set[str] = set()
        signals: set[str] = set()
        for name in itertools.islice(sorted(folder_names(path)), _PROBED_EPISODES):
            try:
                cameras |= {*_camera_files(path / name)}
                signals |= {*tree_signals(read_other_data(path / name / OTHER_DATA))}
            except (UserError, OSError, ValueError):  # reported when the episode is read
                continue
        keys = Keys(sorted(cameras), sorted(signals), (_FILE_PATH, *LANGUAGES))
        self.schema = choose_schema(path, self.name, schema, keys)
        if not self.schema.language:
            self.schema = replace(self.schema, language=LANGUAGES)
        self.cameras = dict(self.schema.cameras) or {name: name for name in sorted(cameras)}

    @staticmethod
    def recognises(path: Path) -> bool:
        if not path.is_dir():
            return False
        looked_at = itertools.islice(folder_names(path), _LOOKED_AT)
        return any((path / name / OTHER_DATA).exists() for name in looked_at)

    def parts(self) -> list[Folders]:
        names = sorted(folder_names(self.root))
        return [
            Folders(self.root, tuple(names[i : i + _EPISODES_PER_PART]), self.schema)
            for i in range(0, len(names), _EPISODES_PER_PART)
        ]

    def is_small(self) -> bool:
        return False  # the number of parts says so already

    def stamp(self) -> dict[str, int]:
        """A checksum of the names of the episode folders."""
        names = "\n".join(sorted(folder_names(self.root)))
        return {"episode folders": google_crc32c.value(os.fsencode(names))}

    def decoder(self) -> None:
        return None


def folder_names(root: Path) -> Iterator[str]:
    """Yield the names of the episode folders, in no order."""
    with os.scandir(root) as entries:
        yield from (e.name for e in entries if e.is_dir() and not e.name.startswith("."))


@dataclass(frozen=True)
class Folders:
    """Some episode folders of a tree."""

    root: Path
    names: tuple[str, ...]
    schema: Schema

    @property
    def size(self) -> int:
        """Episodes."""
        return len(self.names)

    def episodes(self) -> Iterator[Episode | str]:
        for name in self.names:
            try:
                yield _read_folder(self.root, name, self.schema)
            except (UserError, OSError, ValueError) as error:
                yield f"{os.fsencode(name).decode(errors='replace')}: {error}"


def _read_folder(root: Path, name: str, schema: Schema) -> Episode:
    """Read an episode. Raises ValueError, UserError or OSError if it cannot be used."""
    if not name.isprintable():
        raise ValueError("the folder's name is not printable text")
    folder = root / name
    data = read_other_data(folder / OTHER_DATA)
    signals = {
        key: values
        for key, values in tree_signals(data).items()
        if not is_large(values[0].size) or key in {*schema.signals, *schema.state, *schema.action}
    }
    files = _camera_files(folder)
    wanted = schema.cameras or {camera: camera for camera in files}
    cameras = {c: files[key] for c, key in wanted.items() if key in files}
    if not cameras:
        raise ValueError(f"no folder of pictures ({', '.join(wanted) or 'PNG or JPEG files'})")
    length = len(next(iter(signals.values()))) if signals else len(next(iter(cameras.values())))
    languages = (schema.language or LANGUAGES)[: len(LANGUAGES)]
    return Episode(
        key=name,
        length=length,
        signals=signals,
        pictures={
            camera: _pictures(root, f"{name}/{wanted[camera]}", names, length)
            for camera, names in cameras.items()
        },
        texts=tuple(_text(folder / key / "0.txt") for key in languages),
        origin=_origin(name, data, schema),
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


# --------------------------------------------------------------------------- pictures


def _camera_files(folder: Path) -> dict[str, dict[str, int]]:
    """Return {camera: {name of a frame's file: its size}} of an episode folder, unordered."""
    cameras = {}
    for name in sorted(folder_names(folder)):
        with os.scandir(folder / name) as entries:
            files = {
                entry.name: entry.stat().st_size
                for entry in entries
                if entry.name.lower().endswith(PICTURE_SUFFIXES)
                and not entry.name.startswith(".")
                and entry.is_file()
            }
        if files and name not in LANGUAGES:
            cameras[name] = files
    return cameras


def _pictures(root: Path, place: str, sizes: dict[str, int], length: int) -> Pictures:
    """Describe the frames of a camera. Raises ValueError if they are not one for each step."""
    names = _in_time_order(place, [*sizes], length)
    first = (root / place / names[0]).read_bytes()
    described = "".join(f"{name} {sizes[name]}\n" for name in names)
    checksum = google_crc32c.extend(google_crc32c.value(described.encode()), first)
    try:
        size = pictures.size_of(first)
    except ValueError as error:
        raise ValueError(f"{place}/{names[0]}: {error}") from error
    return Pictures(size, checksum, place, names=tuple(names))


def _in_time_order(place: str, names: list[str], length: int) -> list[str]:
    """Sort the names of a camera's files. Numbers that begin with 0 or 1 must have no gap."""
    stems = [name.rpartition(".")[0] for name in names]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    if len(numbers) == len(names):
        names = [name for _, name in sorted(zip(numbers, names, strict=True))]
        first = min(numbers)
        is_count = first in (0, 1) and sorted(numbers) == [*range(first, first + len(numbers))]
        if len(set(numbers)) < len(numbers) or (first in (0, 1) and not is_count):
            raise ValueError(_wrong_frames(place, names, length))
    else:
        names = sorted(names, key=natural_order)
    if len(names) != length:
        raise ValueError(_wrong_frames(place, names, length))
    return names


def _wrong_frames(place: str, names: list[str], length: int) -> str:
    camera = place.rpartition("/")[2]
    return (
        f"{camera} holds {len(names)} files, not frames 0..{length - 1} as {OTHER_DATA} says; "
        "`mcr clean` reports such episodes"
    )


# --------------------------------------------------------------------------- the pickle


def tree_signals(data: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the signals of `other_data.pkl`: name -> [T] or [T, D]; {} if it holds none.

    A list of dicts gives a signal for each entry, "action_dict/joint_velocity". Texts and None,
    which upstream writes for what a data set lacks, are left out. Raises ValueError if lengths
    differ, or if the values of a signal do.
    """
    series = {
        key: values
        for key, values in data.items()
        if isinstance(values, list | tuple | np.ndarray) and key not in FLAGS and len(values)
    }
    signals: dict[str, np.ndarray] = {}
    for key, values in series.items():
        if isinstance(values[0], dict):
            for name in values[0]:
                signals[f"{key}/{name}"] = _stack(f"{key}/{name}", [v[name] for v in values])
        elif values[0] is not None and not isinstance(values[0], str | bytes):
            signals[key] = _stack(key, values)
    reference = "action" if "action" in signals else next(iter(signals), "")
    for key, array in signals.items():
        if len(array) != len(signals[reference]):
            raise ValueError(
                f"{OTHER_DATA} has {len(array)} rows of {key}, {len(signals[reference])} of "
                f"{reference}"
            )
    return signals


def _stack(key: str, values: Any) -> np.ndarray:
    """Return the values of all steps as one array of numbers. Raises ValueError."""
    try:
        array = np.stack([np.atleast_1d(np.asarray(value)) for value in values])
    except (TypeError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{OTHER_DATA}: {key} differs from step to step ({error})") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{OTHER_DATA}: {key} holds {array.dtype}, not numbers")
    return array


def _origin(name: str, data: dict[str, Any], schema: Schema) -> Origin:
    """Return what path, pickle and folder name tell. The name is always the folder's."""
    file_path = str(data.get("file_path") or "")
    try:
        origin = Origin.of(schema.recording, file_path, name) if file_path else Origin(name, name)
    except ValueError:  # a path that tells nothing
        origin = Origin(name, name, file_path=file_path)
    told = origin.session if origin.session not in (name, origin.name) else ""
    date = match[1] if (match := _UPSTREAMS_NAME.fullmatch(name)) else ""
    upstreams = f"/{date}" if date and not file_path else ""
    given = {key: str(data[key]) for key in ("lab", "outcome") if isinstance(data.get(key), str)}
    return replace(
        origin,
        name=name,
        session=str(data.get("session") or told or upstreams or name),
        lab=origin.lab or given.get("lab", ""),
        outcome=origin.outcome or given.get("outcome", ""),
        date=origin.date or date,
    )
