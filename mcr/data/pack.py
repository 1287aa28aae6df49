"""Pack: JPEGs of a data set whose pictures cannot be addressed, so that training reads byte ranges.

Video, HDF5 and parquet have no byte range for a frame, and decoding a random frame of a video costs
10 to 100 times what a JPEG costs. A pack is made once, by one sequential decode, in parallel. It
lies beside the index:

    <dataset>.pack/
      pack.json           of which index (fingerprint), quality, side; written last
      <camera>_<unit>.jpegs   the pictures of some episodes, one after the other
      <camera>_<unit>.npy     offset, length, height and width of each         int64 [frames, 4]
      sizes.npy  files.npy  frame_files.npy  frame_{offsets,lengths}_<c>.*     as in an index

A unit is some episodes of one camera. A finished unit is never written again, so a run that is
killed is continued by the same command.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from mcr.data import pictures
from mcr.data.frame_store import FrameStore
from mcr.data.frames import FrameReader
from mcr.data.index import Index, in_cache, may_hold
from mcr.data.indexing import PLACE_DTYPES, place_files
from mcr.errors import UserError
from mcr.runs.atomic import atomic_path, remove, remove_all_leftovers, system_errors, write_text
from mcr.runs.locks import exclusive
from mcr.runs.processes import KILLED, Pool, ordered_map, progress_bar

FORMAT = "mcr-pack-1"
_FRAMES_PER_UNIT = 2000
_SAMPLED_FRAMES = 16  # are encoded to estimate the size of a pack


@dataclass(frozen=True)
class PackOptions:
    """How pictures are stored.

    quality: of the JPEGs, 1 .. 100
    side:    length of the shorter side; larger pictures are made smaller. 0 = as they are
    """

    quality: int = 95
    side: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality} of a pack must lie in 1 .. 100")
        if self.side < 0:
            raise UserError(f"side={self.side} of a pack must be at least 1, or 0 for no limit")


class Pack(FrameStore):
    """An opened pack. Cheap to open and to pickle."""

    def __init__(self, path: Path):
        self.path = path
        self.info: dict[str, Any] = json.loads((path / "pack.json").read_text(encoding="utf-8"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, (self.path,)

    @property
    def description(self) -> str:
        """What distinguishes its pictures from those of another pack of the same data."""
        return f"JPEG {self.info['quality']}, side {self.info['side']}"


def pack_path(index: Index) -> Path:
    """Return the folder of an index's pack: `<dataset>.pack` for `<dataset>.index`.

    If that folder is read-only and holds no pack of the index as it is now, the pack lies in the
    user's cache.
    """
    name = index.path.name.removesuffix(".index")
    beside = index.path.with_name(f"{name}.pack")
    if may_hold(beside) or _is_pack_of(beside, index):
        return beside
    return in_cache("packs", index.path.with_suffix(""), "pack")


def open_pack(index: Index, options: PackOptions | None = None, workers: int = 0) -> Pack:
    """Open the pack of an index. It is made if there is none, continued if it was begun.

    options: how it is made; None = the defaults, and an existing pack is taken as it is
    workers: processes; 0 = one per core

    Raises UserError if the disk is too small, or a picture cannot be decoded. What is done is kept.
    """
    path = pack_path(index)
    if (pack := find_pack(index)) and options in (None, _options(pack.info)):
        return pack
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path):
        if not (pack := find_pack(index)) or options not in (None, _options(pack.info)):
            _make(index, path, options or PackOptions(), workers)
    return Pack(path)


def find_pack(index: Index) -> Pack | None:
    """Return the finished pack of an index as it is now, or None."""
    path = pack_path(index)
    return Pack(path) if _is_pack_of(path, index) else None


def _is_pack_of(path: Path, index: Index) -> bool:
    if not (path / "pack.json").is_file():
        return False
    info = Pack(path).info
    return info["fingerprint"] == index.fingerprint and info["format"] == FORMAT


def _options(info: dict[str, Any]) -> PackOptions:
    return PackOptions(info["quality"], info["side"])


def slowdown(index: Index, num_frames: int = 12) -> float:
    """Measure how many times longer a random frame takes to decode than from a pack."""
    rows = np.linspace(0, len(index) - 1, num_frames).astype(int).tolist()
    frames, slow, fast = [], 0.0, 0.0
    with contextlib.closing(FrameReader(index)) as reader:
        for number, row in enumerate(rows):
            camera = int(np.flatnonzero(index.sizes[row, :, 0])[0])
            step = int(index.lengths[row]) * (number % 5) // 5
            began = time.perf_counter()
            frames.append(reader.read(row, camera, step))
            slow += time.perf_counter() - began
    options = PackOptions()
    encoded = [_encode(_shrink(frame, options.side), options) for frame in frames]
    for data in encoded:
        began = time.perf_counter()
        pictures.decode(data)
        fast += time.perf_counter() - began
    return slow / fast


# --------------------------------------------------------------------------- making


@dataclass(frozen=True)
class Unit:
    """Some episodes of one camera, which one process packs at a time.

    rows: in the order in which they were recorded, so that a video is decoded from front to back
    """

    index: Index
    folder: Path
    options: PackOptions
    camera: int
    number: int
    rows: tuple[int, ...]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.camera}_{self.number:06d}.jpegs"

    @property
    def num_frames(self) -> int:
        return int(self.index.lengths[list(self.rows)].sum())

    @property
    def is_done(self) -> bool:
        return self.path.with_suffix(".npy").is_file()


def _make(index: Index, folder: Path, options: PackOptions, workers: int) -> None:
    key = {
        "format": FORMAT,
        "fingerprint": index.fingerprint,
        "quality": options.quality,
        "side": options.side,
    }
    _begin(folder, key)
    units = list(_units(index, folder, options))
    todo = [unit for unit in units if not unit.is_done]
    total = sum(unit.num_frames for unit in units)
    num_todo = sum(unit.num_frames for unit in todo)
    if todo:
        _announce(index, folder, options, num_todo)
    with progress_bar(None, "pack", "frames", total) as bar:
        bar.update(total - num_todo)
        packed = ordered_map(_pack_unit, todo, workers, on_lost=_name_lost)
        for unit, _ in zip(todo, packed, strict=True):
            bar.update(unit.num_frames)
    remove_all_leftovers(folder)  # also of the workers of a killed run, which die a moment after it
    with system_errors(folder / "pack.json"):
        _finish(index, folder, units)
    num_bytes = sum(unit.path.stat().st_size for unit in units)
    write_text(folder / "pack.json", json.dumps({**key, "frames": total, "bytes": num_bytes}))
    print(
        f"packed {total:,} frames of {len(index):,} episodes and {len(index.cameras)} cameras: "
        f"{num_bytes / 1e6:,.1f} MB, in {folder}",
        flush=True,
    )


def _begin(folder: Path, key: dict[str, Any]) -> None:
    """Keep what an earlier run of the same kind has made, delete anything else."""
    begun = folder / "begun.json"
    if begun.is_file() and json.loads(begun.read_text(encoding="utf-8")) == key:
        return
    # A run that was killed at its very beginning leaves a hidden file.
    if (
        folder.exists()
        and any(not path.name.startswith(".") for path in folder.iterdir())
        and (not begun.is_file())
    ):
        raise UserError(f"{folder}: is no pack; move it away, or choose another data.index")
    remove(folder)
    folder.mkdir(parents=True)
    write_text(begun, json.dumps(key))


def _units(index: Index, folder: Path, options: PackOptions) -> Iterator[Unit]:
    recorded = np.argsort(index.starts, kind="stable")
    for camera in range(len(index.cameras)):
        rows: list[int] = []
        number = frames = 0
        for row in recorded.tolist():
            if index.sizes[row, camera, 0] == 0:
                continue
            rows.append(row)
            frames += int(index.lengths[row])
            if frames >= _FRAMES_PER_UNIT:
                yield Unit(index, folder, options, camera, number, tuple(rows))
                rows, number, frames = [], number + 1, 0
        if rows:
            yield Unit(index, folder, options, camera, number, tuple(rows))


def _announce(index: Index, folder: Path, options: PackOptions, num_frames: int) -> None:
    """Print what a pack will take. Raises UserError if the disk has not so much."""
    rows = np.linspace(0, len(index) - 1, min(_SAMPLED_FRAMES, len(index))).astype(int).tolist()
    sizes = []
    with contextlib.closing(FrameReader(index)) as reader:
        for row in rows:
            camera = int(np.flatnonzero(index.sizes[row, :, 0])[0])
            for frame in reader.episode(row, camera, [int(index.lengths[row]) // 2]):
                sizes.append(len(_encode(_shrink(frame, options.side), options)))
    wanted = int(np.mean(sizes) * num_frames)
    free = shutil.disk_usage(folder).free
    print(
        f"packing {num_frames:,} frames, which training will read from {folder}: about "
        f"{wanted / 1e6:,.0f} MB; {free / 1e6:,.0f} MB are free",
        flush=True,
    )
    if wanted > free:
        raise UserError(
            f"{folder}: {free / 1e6:,.1f} MB of the disk are free, the pack needs about "
            f"{wanted / 1e6:,.1f} MB; free some space and run the same command again, choose a "
            "place with data.index=, or train without it: data.pack=false"
        )


_reader: FrameReader | None = None  # of this process; consecutive units continue in one video


def _pack_unit(unit: Unit) -> None:
    global _reader
    if _reader is None or _reader.index.path != unit.index.path:
        _reader = FrameReader(unit.index)
    places = []
    with atomic_path(unit.path) as partial, partial.open("wb") as file:
        for row in unit.rows:
            for frame in _reader.episode(row, unit.camera):
                frame = _shrink(frame, unit.options.side)
                data = _encode(frame, unit.options)
                places.append((file.tell(), len(data), *frame.shape[:2]))
                file.write(data)
    with atomic_path(unit.path.with_suffix(".npy")) as partial, partial.open("wb") as file:
        np.save(file, np.array(places, np.int64))


def _name_lost(pool: Pool, unit: Unit) -> None:
    """Raise UserError that names the episodes whose pictures kill the process that decodes them."""
    each = pool.one_by_one(_decode, [replace(unit, rows=(row,)) for row in unit.rows])
    names = [
        str(unit.index.names[row], "utf-8")
        for row, (is_done, _) in zip(unit.rows, each, strict=True)
        if not is_done
    ]
    camera = unit.index.cameras[unit.camera]
    raise UserError(
        f"{unit.index.source}: {camera} of {', '.join(names[:3]) or unit.path.name}"
        f": {KILLED}; take the episode out of the data"
    )


def _decode(unit: Unit) -> None:
    reader = FrameReader(unit.index)
    for row in unit.rows:
        for _ in reader.episode(row, unit.camera):
            pass


def _shrink(frame: np.ndarray, side: int) -> np.ndarray:
    """Make a picture smaller so that its shorter side is `side`, with antialiasing."""
    height, width = frame.shape[:2]
    if side == 0 or min(height, width) <= side:
        return np.ascontiguousarray(frame)
    scale = side / min(height, width)
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def _encode(frame: np.ndarray, options: PackOptions) -> bytes:
    return simplejpeg.encode_jpeg(frame, options.quality, "RGB", "420", fastdct=False)


def _finish(index: Index, folder: Path, units: list[Unit]) -> None:
    """Put the places of all units together, as in an index."""
    sizes = np.zeros_like(index.sizes)
    files = np.full(index.sizes.shape[:2], -1, np.int32)
    total = index.info["total_steps"]
    for camera in range(len(index.cameras)):
        arrays = [np.zeros(total, dtype) for dtype in PLACE_DTYPES]
        for number, unit in enumerate(units):
            if unit.camera != camera:
                continue
            places, begin = np.load(unit.path.with_suffix(".npy")), 0
            for row in unit.rows:
                start, length = int(index.starts[row]), int(index.lengths[row])
                own = places[begin : begin + length]
                if len(own) != length or (own[:, 2:] != own[0, 2:]).any():
                    raise UserError(f"{unit.path}: is damaged; delete {folder} and pack again")
                for array, column in zip(arrays, (0, 1), strict=True):
                    array[start : start + length] = own[:, column]
                sizes[row, camera], files[row, camera] = own[0, 2:], number
                begin += length
        for array, path in zip(arrays, place_files(folder, camera), strict=True):
            array.tofile(path)
    np.save(folder / "sizes.npy", sizes)
    np.save(folder / "frame_files.npy", files)
    np.save(folder / "files.npy", np.array([os.fsencode(unit.path.name) for unit in units]))
