"""One episode of a PNG/pickle tree -> an `Episode`. Of any robot, not only of DROID's.

A camera is a folder that holds PNG or JPEG files. What an episode has is read; which cameras and
signals make up the data set is decided by the index.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from mcr.data import pictures
from mcr.data.episode import FLAGS, Episode, Origin, Pictures
from mcr.data.hdf5 import natural_order
from mcr.data.other_data import OTHER_DATA, date_of, default_session, read_other_data
from mcr.data.regular_files import read_bytes, read_text, shown
from mcr.data.schema import LANGUAGES, RecordingSchema, Schema, is_large, names_of, short_name
from mcr.errors import UserError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_MAX_FRAME_NUMBER = 10**8  # a larger first number is a time stamp
_TIME = re.compile(r"\d+\.\d+")


@dataclass(frozen=True)
class EpisodeReader:
    """What is read of each episode folder of a tree.

    cameras: name -> folder; {} = all folders of pictures, by their own names
    """

    root: Path
    schema: Schema
    cameras: dict[str, str]

    def read(self, name: str) -> Episode:
        """Read the episode folder `name`. Raises ValueError or OSError that says what is wrong."""
        folder = self.root / name
        data = _read_data(folder)
        found = camera_folders(folder)
        wanted = self.cameras or {camera: camera for camera in found}
        cameras = {
            camera: self._pictures(name, key) for camera, key in wanted.items() if key in found
        }
        if not cameras:
            raise ValueError(f"has no frames: no folder of {', '.join(PICTURE_SUFFIXES)} files")
        signals = self._signals(data)
        lengths = {camera: len(place.names or ()) for camera, place in cameras.items()}
        length = next(iter(lengths.values()))
        lengths |= {f"{key} of {OTHER_DATA}": len(array) for key, array in signals.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{n} in {place}" for place, n in lengths.items())
            raise ValueError(f"has different lengths: {shown}")
        return Episode(
            key=name,
            length=length,
            signals=signals,
            pictures=cameras,
            texts=tuple(_read_text(folder / key / "0.txt") for key in self.schema.language),
            origin=_origin(name, data, self.schema.recording),
        )

    def _pictures(self, name: str, camera: str) -> Pictures:
        """Raises ValueError if frames are missing, or if files are none."""
        folder = self.root / name / camera
        sizes = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_picture(entry.name):
                    status = entry.stat()
                    if not stat.S_ISREG(status.st_mode):
                        raise ValueError(f"{camera}/{shown(entry.name)} is no regular file")
                    sizes[entry.name] = status.st_size
        try:
            names = order_frames(sizes)
            first = read_bytes(folder / names[0])
            size = pictures.size_of(first)
        except ValueError as error:
            raise ValueError(f"{camera}: {error}") from error
        listing = "".join(f"{file} {sizes[file]}\n" for file in names)
        checksum = google_crc32c.extend(google_crc32c.value(first), listing.encode())
        return Pictures(size, checksum, f"{name}/{camera}", names=tuple(names))

    def _signals(self, data: dict[Any, Any]) -> dict[str, np.ndarray]:
        """Return the numbers of `other_data.pkl`. Raises ValueError if rows do not fit together."""
        try:
            columns = dict(flatten(data))
            names = names_of(columns)
            arrays = {names[key]: stack(key, rows) for key, rows in columns.items()}
        except ValueError as error:
            raise ValueError(f"{OTHER_DATA}: {error}") from error
        except Exception as error:  # what a damaged pickle holds can raise nearly anything
            raise ValueError(f"{OTHER_DATA}: {type(error).__name__}: {error}") from error
        named = {short_name(key) for key in self.schema.signals}
        named |= {*self.schema.state, *self.schema.action}
        signals = {}
        for name, array in arrays.items():
            if array is None:
                continue
            if name in FLAGS and array.ndim == 1:
                signals[name] = array.astype(bool)
            elif not is_large(array[:1].size) or name in named:
                signals[name] = array.reshape(len(array), -1) if array.ndim > 2 else array
        return signals


# --------------------------------------------------------------------------- cameras


def is_picture(name: str) -> bool:
    """Is this the name of a picture? Hidden files are none."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")


def camera_folders(folder: Path) -> list[str]:
    """Return the names of the folders that hold pictures, sorted. Raises OSError, ValueError."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    found = sorted(name for name in names if name not in LANGUAGES and has_pictures(folder / name))
    for name in found:
        if not name.isprintable():  # holds for names that are not UTF-8, too
            raise ValueError(f"the name of the folder {shown(name)} is not printable UTF-8")
    return found


def has_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) for entry in entries)


def order_frames(names: Iterable[str]) -> list[str]:
    """Return the names of a camera's files in time order.

    Names that are numbers count the frames from 0 or 1, with any zero padding, unless the first one
    has over eight digits. Names like 12.5.png are times. All others are in natural order.

    Raises ValueError if frames are missing or double, or if a name is not UTF-8.
    """
    stems: dict[str, str] = {}
    for name in sorted(names):
        if not name.isprintable():
            raise ValueError(f"the name of the file {shown(name)} is not printable UTF-8")
        stems[name] = name.rpartition(".")[0]
    if all(stem.isascii() and stem.isdecimal() for stem in stems.values()):
        return _order_numbers({name: int(stem) for name, stem in stems.items()})
    if all(_TIME.fullmatch(stem) for stem in stems.values()):
        return sorted(stems, key=lambda name: Decimal(stems[name]))
    return sorted(stems, key=natural_order)


def _order_numbers(numbers: dict[str, int]) -> list[str]:
    ordered = sorted(numbers, key=lambda name: numbers[name])
    for before, after in zip(ordered, ordered[1:], strict=False):
        if numbers[before] == numbers[after]:
            raise ValueError(f"{before} and {after} have the same number")
    smallest, largest = numbers[ordered[0]], numbers[ordered[-1]]
    first = min(smallest, 1)
    if smallest < _MAX_FRAME_NUMBER and largest - first + 1 != len(ordered):
        present = set(numbers.values())
        missing = next(n for n in range(first, largest) if n not in present)
        count = largest - first + 1 - len(ordered)
        verb = "frame is" if count == 1 else "frames are"
        raise ValueError(f"{count} {verb} missing, the first is {missing}")
    return ordered


# --------------------------------------------------------------------------- signals and texts


def _read_data(folder: Path) -> dict[Any, Any]:
    try:
        return read_other_data(folder / OTHER_DATA)
    except FileNotFoundError as error:
        raise ValueError(f"{OTHER_DATA} is missing") from error
    except UserError as error:
        raise ValueError(str(error).removeprefix(f"{folder}/")) from error


def flatten(data: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, rows) of everything that has a row per step.

    A list of dicts and a dict of lists are the same: their entries are called "<key>/<name>".
    Texts, single numbers and None say nothing of a step and are left out.
    """
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from flatten(value, f"{key}/")
        elif isinstance(value, np.ndarray) and value.ndim:
            yield key, value
        elif isinstance(value, list | tuple):
            if value and isinstance(value[0], dict):
                yield from flatten(_by_name(key, value), f"{key}/")
            else:
                yield key, value


def _by_name(key: str, rows: list[Any] | tuple[Any, ...]) -> dict[Any, list[Any]]:
    """Turn a list of dicts into a dict of lists. Raises ValueError if the steps differ."""
    for step, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            has = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
            raise ValueError(f"{key} at step {step} has {has}; step 0 has {', '.join(rows[0])}")
    return {name: [row[name] for row in rows] for name in rows[0]}


def stack(key: str, rows: Any) -> np.ndarray | None:
    """Return rows as float32 [T, ...]; None if they hold texts, or nothing at all.

    Raises ValueError that names `key` if rows differ in shape, or hold neither numbers nor texts.
    """
    if len(rows) and all(row is None or isinstance(row, str | bytes) for row in rows):
        return None  # upstream writes None for what a data set lacks
    if any(map(_holds_text, rows)):  # NumPy would give every row the length of the longest text
        raise ValueError(f"{key} has rows that are no numbers (texts)")
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise ValueError(f"{key} has rows of different shapes") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{key} has rows that are no numbers ({array.dtype})")
    with np.errstate(over="ignore"):  # the index names what is not finite
        return array.astype(np.float32)


def _holds_text(row: Any) -> bool:
    if isinstance(row, list | tuple):
        return any(map(_holds_text, row))
    return isinstance(row, str | bytes) or isinstance(row, np.ndarray) and row.dtype.kind in "SU"


def _read_text(path: Path) -> str:
    """Return the text of a file, "" if there is none. Raises ValueError if it is not UTF-8."""
    if not os.path.lexists(path):
        return ""
    place = f"{path.parent.name}/{path.name}"
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8: {error}") from error
    except ValueError as error:
        raise ValueError(f"{place} {error}") from error


def _origin(folder: str, data: dict[Any, Any], recording: RecordingSchema) -> Origin:
    """Return what the original path, the entries of `other_data.pkl` and the folder's name tell.

    Raises ValueError if the folder's name is unsafe.
    """

    def text(key: str) -> str:
        value = data.get(key)
        return value if isinstance(value, str) else ""

    path = text("file_path")
    own = Origin.of(RecordingSchema(), path, fallback=folder)
    try:
        told = Origin.of(recording, path if recording.key else path or folder, fallback=folder)
    except ValueError:  # a path that makes no name, such as run7.h5 where folders are expected
        told = own
    lab = told.lab or text("lab")
    session = told.session if told.session != told.name else text("session")
    outcome = told.outcome or text("outcome")
    return replace(
        own,
        session=session or default_session(own.name, lab),
        lab=lab,
        outcome=outcome if outcome in ("success", "failure") else "",
        date=told.date or text("date") or date_of(own.name),
        split=text("split"),
    )
