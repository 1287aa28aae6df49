"""Recordings: anything that holds a robot's pictures -> episodes of frames, to compute features of.

    RLDS shards, PNG/pickle tree   through `mcr.data.index`, as training reads them
    robomimic's HDF5               through `mcr.data.hdf5`                              (extra hdf5)
    a folder of videos, or one     each file is an episode                             (extra video)
    a folder of pictures           each folder with pictures in it is an episode, in natural order

Actions and states are read elsewhere. A `Recordings` opens its files when it is first read, so it
can be sent to another process.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np

from mcr.data import hdf5, pictures
from mcr.data.frames import FrameReader
from mcr.data.hdf5 import Hdf5File, natural_order
from mcr.data.index import Index, open_index
from mcr.data.other_data import OTHER_DATA
from mcr.errors import UserError, import_extra, require_choice

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_DATA_SETS = ("features.json", "*/features.json", f"*/{OTHER_DATA}")
_BYTES_PER_READ = 1 << 22


class Recordings(Protocol):
    """Episodes of frames.

    names, lengths: of the episodes
    fingerprint:    a hash that changes with the content
    """

    names: list[str]
    lengths: list[int]
    cameras: tuple[str, ...]
    fingerprint: str

    def frames(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        """All frames of one camera in order, uint8 [H, W, 3], RGB.

        Raises UserError that names a frame which cannot be read.
        """
        ...


def open_recordings(source: str | Path) -> Recordings:
    """Open data of any kind above. Raises UserError if `source` is none of them."""
    source = Path(source).expanduser()
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; check the path to the data")
    if source.is_file():
        if source.suffix in hdf5.SUFFIXES:
            return Hdf5Recordings(source)
        if source.suffix in VIDEO_SUFFIXES:
            return VideoRecordings.of([source], source.parent)
        raise UserError(f"{source}: is neither HDF5 nor a video; give one of those, or a folder")
    if any(any(source.glob(pattern)) for pattern in _DATA_SETS):
        return IndexedRecordings(open_index(source))
    if videos := _files(source, VIDEO_SUFFIXES):
        return VideoRecordings.of(videos, source)
    if files := _files(source, PICTURE_SUFFIXES):
        return PictureRecordings.of(files, source)
    raise UserError(
        f"{source}: holds neither shards (features.json), nor episodes (*/{OTHER_DATA}), nor "
        f"videos, nor pictures ({', '.join(PICTURE_SUFFIXES)})"
    )


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files below `folder` in natural order, 2 before 10."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    return sorted(found, key=lambda path: natural_order(path.relative_to(folder).as_posix()))


def _fingerprint(files: Iterable[Path], root: Path) -> str:
    """SHA-256 of the files' names, sizes and checksums."""
    digest = hashlib.sha256()
    for path in files:
        checksum, size = google_crc32c.Checksum(), 0
        with path.open("rb") as file:
            while block := file.read(_BYTES_PER_READ):
                checksum.update(block)
                size += len(block)
        name = path.relative_to(root).as_posix()
        digest.update(f"{name} {size} {checksum.hexdigest().decode()}\n".encode())
    return digest.hexdigest()


# --------------------------------------------------------------------------- shards and trees


class IndexedRecordings:
    """RLDS shards or a tree. The fingerprint is the index's, which is the same for both."""

    def __init__(self, index: Index):
        self._index = index
        self.names = [name.decode() for name in index.names]
        self.lengths = [int(length) for length in index.lengths]
        self.cameras = index.cameras
        self.fingerprint = index.fingerprint

    @cached_property
    def _reader(self) -> FrameReader:
        return FrameReader(self._index)

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexedRecordings, (self._index,)

    def frames(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        for step in range(self.lengths[episode]):
            yield self._reader.read(episode, self.cameras.index(camera), step)


# --------------------------------------------------------------------------- HDF5


class Hdf5Recordings:
    """robomimic's HDF5."""

    def __init__(self, path: Path):
        self._path = path
        with Hdf5File(path) as file:
            self.names = file.episodes
            shapes = [file.cameras(name) for name in self.names]
        if not shapes or not shapes[0]:
            raise UserError(f"{path}: has no pictures (data/demo_0/obs/*, uint8 [T, H, W, 3])")
        self.cameras = tuple(sorted(shapes[0]))
        self.lengths = []
        for name, found in zip(self.names, shapes, strict=True):
            if set(found) != set(self.cameras) or len(set(found.values())) != 1:
                raise UserError(
                    f"{path}: {name} has the cameras and lengths {found}; the first episode has "
                    f"the cameras {', '.join(self.cameras)}"
                )
            self.lengths.append(found[self.cameras[0]])
        self.fingerprint = _fingerprint([path], path.parent)

    def frames(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        with Hdf5File(self._path) as file:
            yield from file.frames(self.names[episode], camera)


# --------------------------------------------------------------------------- files


@dataclass
class VideoRecordings:
    """Videos. Each is an episode with one camera, "video"."""

    files: list[Path]
    names: list[str]
    lengths: list[int]
    fingerprint: str
    cameras: tuple[str, ...] = ("video",)

    @classmethod
    def of(cls, files: list[Path], root: Path) -> VideoRecordings:
        """Count the frames of each video, which reads the files once but does not decode them."""
        names = [path.relative_to(root).with_suffix("").as_posix() for path in files]
        if len(set(names)) < len(names):
            names = [path.relative_to(root).as_posix() for path in files]
        return cls(files, names, [_num_frames(path) for path in files], _fingerprint(files, root))

    def frames(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        path, count = self.files[episode], 0
        with _video(path) as container:
            for frame in container.decode(video=0):
                count += 1
                yield frame.to_ndarray(format="rgb24")
        if count != self.lengths[episode]:
            raise UserError(
                f"{path}: {count} of {self.lengths[episode]} frames can be decoded; it is damaged "
                "or cut off"
            )


def _num_frames(path: Path) -> int:
    with _video(path) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


@contextlib.contextmanager
def _video(path: Path) -> Iterator[Any]:
    """An open video. An error of FFmpeg inside the block becomes a UserError that names it."""
    av = import_extra("av", "video")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise UserError(f"{path}: is no readable video ({error})") from error
    with container:
        if not container.streams.video:
            raise UserError(f"{path}: has no video in it")
        try:
            yield container
        except av.FFmpegError as error:
            raise UserError(f"{path}: cannot be decoded ({error})") from error


@dataclass
class PictureRecordings:
    """PNG or JPEG files. Each folder that holds some is an episode with one camera, "picture"."""

    episodes: list[list[Path]]
    names: list[str]
    lengths: list[int]
    fingerprint: str
    cameras: tuple[str, ...] = ("picture",)

    @classmethod
    def of(cls, files: list[Path], root: Path) -> PictureRecordings:
        folders: dict[str, list[Path]] = {}
        for path in files:
            folders.setdefault(path.parent.relative_to(root).as_posix(), []).append(path)
        episodes = list(folders.values())
        return cls(episodes, list(folders), [*map(len, episodes)], _fingerprint(files, root))

    def frames(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        for path in self.episodes[episode]:
            try:
                yield pictures.decode(path.read_bytes())
            except ValueError as error:
                raise UserError(f"{path}: {error}") from error


def require_cameras(recordings: Recordings, cameras: Iterable[str] | None) -> tuple[str, ...]:
    """The chosen cameras, all if none is chosen. Raises UserError for one that does not exist."""
    chosen = tuple(cameras) if cameras else recordings.cameras
    return tuple(require_choice("camera", camera, recordings.cameras) for camera in chosen)
