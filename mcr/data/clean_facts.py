"""Facts about an episode of a tree: what the rules of cleaning may know of it.

`inspect_episode` looks at every file of one folder, in a worker process. It reads trees of
upstream's script as well as ours, and expects any defect.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcr.data import pictures
from mcr.data.other_data import OTHER_DATA, read_other_data
from mcr.data.regular_files import is_readable, read_bytes, shown
from mcr.data.schema import LANGUAGES
from mcr.data.sources.tree_episode import is_picture, order_frames
from mcr.errors import UserError

_NO_FILE = (FileNotFoundError, IsADirectoryError)  # other errors (permissions, disk) end the run


@dataclass(frozen=True)
class CameraFolder:
    """The folder of one camera.

    num_frames: number of pictures
    gap:        what is wrong with the sequence of their names; "" if nothing is
    size:       (height, width) of the first picture that could be read
    damage:     the first picture that cannot be decoded or has another size; "" if there is none
    """

    num_frames: int
    gap: str
    size: tuple[int, int] | None
    damage: str


@dataclass(frozen=True)
class Facts:
    """What the rules may know of an episode.

    cameras:      folder of each camera
    instructions: text of each instruction that is there
    unreadable:   why other_data.pkl cannot be read; "" if it can
    lengths:      number of rows of each signal. Texts, single numbers and None, which upstream
                  writes for what a data set lacks, are no signals
    widths:       numbers in a row of each signal; None if rows differ or hold no numbers
    not_finite:   signals that hold a NaN or an infinite value
    """

    name: str
    cameras: dict[str, CameraFolder]
    instructions: tuple[str, ...]
    unreadable: str
    lengths: dict[str, int]
    widths: dict[str, int | None]
    not_finite: tuple[str, ...]

    @property
    def num_frames(self) -> int:
        """Frames of the camera that has the fewest."""
        return min((camera.num_frames for camera in self.cameras.values()), default=0)


def inspect_episode(folder: Path, quick: bool = False) -> Facts:
    """Look at every file of an episode folder.

    quick: look only at the first and last bytes of each picture instead of decoding it
    """
    cameras = [name for name in _list_folders(folder) if _is_camera(folder / name)]
    try:
        data, unreadable = read_other_data(folder / OTHER_DATA), ""
    except _NO_FILE:
        data, unreadable = {}, f"{OTHER_DATA} is missing"
    except UserError as error:
        data, unreadable = {}, str(error).removeprefix(f"{folder}/")
    signals = {
        name: rows for key, value in data.items() for name, rows in _signals(str(key), value)
    }
    arrays = {name: _stack(rows) for name, rows in signals.items()}
    return Facts(
        name=folder.name,
        cameras={camera: _inspect_camera(folder / camera, quick) for camera in cameras},
        instructions=tuple(
            str(read_bytes(path), "utf-8", "replace")
            for key in LANGUAGES
            if is_readable(path := folder / key / "0.txt")
        ),
        unreadable=unreadable,
        lengths={name: len(rows) for name, rows in signals.items()},
        widths={name: None if a is None else a.shape[1] for name, a in arrays.items()},
        not_finite=tuple(
            name for name, a in arrays.items() if a is not None and not np.isfinite(a).all()
        ),
    )


def lost_episode(folder: Path, why: str) -> Facts:
    """Return what is known of an episode that cannot be inspected."""
    return Facts(folder.name, {}, (), why, {}, {}, ())


def _list_folders(folder: Path) -> list[str]:
    entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
    names = (e.name for e in entries if Path(e.path).is_dir())  # a loop of links is no folder
    return sorted(name for name in names if name not in LANGUAGES)


def _is_camera(folder: Path) -> bool:
    """Does a folder hold pictures, or nothing at all, as a camera that failed?"""
    entries = list(os.scandir(folder))
    return not entries or any(is_picture(entry.name) for entry in entries)


def _inspect_camera(folder: Path, quick: bool) -> CameraFolder:
    files = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    frames = [name for name in files if is_picture(name)]
    gap = next((f"{shown(name)} is no frame" for name in files if not is_picture(name)), "")
    try:
        frames = order_frames(frames) if frames else []
    except ValueError as error:
        gap = str(error)
        frames = sorted({name.rpartition(".")[0]: name for name in frames}.values())
    size, damage = None, ""
    for name in frames:
        stem = name.rpartition(".")[0]
        frame = f"frame {int(stem)}" if stem.isdecimal() else shown(name)
        try:
            found = _picture_size(read_bytes(folder / name), quick)
        except (MemoryError, ValueError, *_NO_FILE) as error:
            damage = damage or f"{frame}: {error}"
            continue
        size = size or found
        if found != size:
            damage = damage or f"{frame} is {show_size(found)}, not {show_size(size)}"
    return CameraFolder(len(frames), gap, size, damage)


def _picture_size(data: bytes, quick: bool) -> tuple[int, int]:
    """Return (height, width). Raises ValueError for a damaged picture."""
    if quick:
        if not data.endswith((b"\xff\xd9", b"IEND\xaeB\x60\x82")):
            raise ValueError("a truncated picture")
        return pictures.size_of(data)
    height, width, _ = pictures.decode(data).shape
    return height, width


def _signals(key: str, value: Any) -> Iterable[tuple[str, list[Any]]]:
    """Yield the rows of a signal, or those of each of its parts if it is made of dicts."""
    if isinstance(value, dict):
        for name in value:
            yield from _signals(f"{key}/{name}", value[name])
        return
    if not isinstance(value, list | tuple | np.ndarray):
        return
    if isinstance(value, np.ndarray) and not value.ndim:
        return
    rows = list(value)
    if rows and all(row is None or isinstance(row, str | bytes) for row in rows):
        return
    if not rows or not all(isinstance(row, dict) for row in rows):
        yield key, rows
        return
    for name in sorted({name for row in rows for name in row}, key=str):
        yield from _signals(f"{key}/{name}", [row[name] for row in rows if name in row])


def _stack(rows: list[Any]) -> np.ndarray | None:
    try:
        return np.array(rows, np.float64).reshape(len(rows), -1) if rows else None
    except (MemoryError, OverflowError, TypeError, ValueError):
        return None


def show_size(size: tuple[int, int]) -> str:
    """Return "<height> x <width>"."""
    return f"{size[0]} x {size[1]}"
