"""Frames: (row of the index, camera, step) -> uint8 pixels.

A frame costs one `pread` and one decode, from a shard, from a pack, or from a file of its own.
Nothing is cached, listed or unpickled. A file of many frames is opened once and kept open. A format
whose frames have no bytes of their own is decoded as it is read, which is slow, unless there is a
pack.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mcr.data import pictures
from mcr.data.frame_store import FrameStore
from mcr.data.index import Index
from mcr.data.regular_files import read_bytes
from mcr.data.sources import open_source
from mcr.data.sources.source import Decoder
from mcr.errors import UserError

# A network file system reports these errors when a server is unreachable for a moment. They must
# neither end a run of days nor change its samples (as data.on_error=skip would), so such a read is
# repeated. What lasts longer than these waits is an error.
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
_WAITS_S = (1.0, 5.0, 25.0)

_FILES_OF_OTHERS = 256  # a process also opens sockets, logs, libraries and shared memory


class FrameReader:
    """Reads single frames of a data set.

    It raises this process's limit of open files to hold all files of frames. If the system allows
    fewer, it closes the least recently used one. It can be pickled and opens its files anew.
    """

    def __init__(self, index: Index, pack: FrameStore | None = None):
        """pack: read the frames from there; None = from the data set itself"""
        self.index = index
        self._store: FrameStore | None = pack or (index if index.is_addressable else None)
        self._pack = pack
        self._decoder: tuple[int, Decoder] | None = None  # and the process that it belongs to
        self._open_files: OrderedDict[int, int] = OrderedDict()  # file -> descriptor, oldest first

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameReader, (self.index, self._pack)

    @property
    def sizes(self) -> np.ndarray:
        """(height, width) of the frames of each episode and camera, 0 if absent: int32 [N, C, 2]"""
        return self._store.sizes if self._store else self.index.sizes

    def read(self, row: int, camera: int, step: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return the frame of `index.cameras[camera]` at `step` of episode `row`: uint8 [H, W, 3].

        out: a contiguous array to decode into, uint8 [H, W, 3]. It may be larger than the frame;
             then the frame lies in its upper left corner, and the rest is 0.

        Raises UserError that names file, episode, camera and step if the frame cannot be read or
        does not have the size that the index says.
        """
        height, width = (int(n) for n in self.sizes[row, camera])
        if height == 0:
            raise UserError(f"{self._place(row, camera, step)}: the episode has no such camera")
        if out is None:
            out = np.empty((height, width, 3), np.uint8)
        if out.shape[:2] != (height, width):
            out[:height, :width] = self.read(row, camera, step)
            out[height:], out[:height, width:] = 0, 0
            return out
        if self._store is None:
            (out[:],) = self._decoded(row, camera, [step])
            return out
        try:
            return pictures.decode(self._read_patiently(self._store, row, camera, step), out)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._place(row, camera, step)}: {error}") from error

    def episode(
        self, row: int, camera: int, steps: Sequence[int] | None = None
    ) -> Iterator[np.ndarray]:
        """Yield the frames at increasing `steps` of an episode, all if None: uint8 [H, W, 3].

        For formats that are decoded as they are read this is much faster than `read`.
        """
        steps = range(int(self.index.lengths[row])) if steps is None else steps
        if self._store is None:
            yield from self._decoded(row, camera, steps)
        else:
            for step in steps:
                yield self.read(row, camera, step)

    # --- formats that are decoded as they are read

    def _own_decoder(self) -> Decoder:
        """The decoder of this process. A forked process must not use its parent's open files."""
        if self._decoder is None or self._decoder[0] != os.getpid():
            decoder = open_source(self.index.source, self.index.schema).decoder()
            assert decoder is not None, "frames that are not addressable have a decoder"
            self._decoder = os.getpid(), decoder
        return self._decoder[1]

    def _decoded(self, row: int, camera: int, steps: Sequence[int]) -> Iterator[np.ndarray]:
        height, width = (int(n) for n in self.sizes[row, camera])
        key = self.index.table["key"].iloc[row]
        frames = self._own_decoder().frames(key, self.index.cameras[camera], steps)
        for step, frame in zip(steps, frames, strict=True):
            if frame.shape != (height, width, 3):
                raise UserError(
                    f"{self._place(row, camera, step)}: a picture of {frame.shape[:2]} (height, "
                    f"width), not {(height, width)}"
                )
            yield frame

    # --- byte ranges and files

    def _read_patiently(self, store: FrameStore, row: int, camera: int, step: int) -> bytes:
        for wait_s in _WAITS_S:
            try:
                return self._stored_bytes(store, row, camera, step)
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    raise
                place = self._place(row, camera, step)
                print(f"{place}: {error}; again in {wait_s:g} s", file=sys.stderr)
            self._close_file(int(store.frame_files[row, camera]))  # a stale handle stays stale
            time.sleep(wait_s)
        return self._stored_bytes(store, row, camera, step)

    def _stored_bytes(self, store: FrameStore, row: int, camera: int, step: int) -> bytes:
        if store.frame_names is not None:
            return read_bytes(self._path(store, row, camera, step))
        offset, length = self._range(store, row, camera, step)
        descriptor = self._descriptor(store, int(store.frame_files[row, camera]))
        data = os.pread(descriptor, length, offset)
        if len(data) < length:
            raise ValueError(f"the file ends {length - len(data)} bytes before the frame does")
        return data

    def _range(self, store: FrameStore, row: int, camera: int, step: int) -> tuple[int, int]:
        offsets, lengths = store.frame_places[camera]
        position = int(self.index.starts[row]) + step
        return int(offsets[position]), int(lengths[position])

    def _path(self, store: FrameStore, row: int, camera: int, step: int) -> Path:
        """Return the file that holds frames; the frame's own file if each has one."""
        folder = store.root / os.fsdecode(bytes(store.files[int(store.frame_files[row, camera])]))
        if store.frame_names is None:
            return folder
        offset, length = self._range(store, row, camera, step)
        return folder / os.fsdecode(store.frame_names[offset : offset + length].tobytes())

    @cached_property
    def _max_open_files(self) -> int:
        return _raise_file_limit(len(self._store.files) if self._store else 0)

    def _descriptor(self, store: FrameStore, file: int) -> int:
        if file in self._open_files:
            self._open_files.move_to_end(file)
        else:
            if len(self._open_files) >= self._max_open_files:
                self._close_file(next(iter(self._open_files)))
            path = store.root / os.fsdecode(bytes(store.files[file]))
            descriptor = os.open(path, os.O_RDONLY)
            # Read-ahead is useless because the next frame lies elsewhere. Linux notices that itself
            # on a local disk (benchmarks/index.py). Other systems and file systems may not.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self._open_files[file] = descriptor
        return self._open_files[file]

    def _place(self, row: int, camera: int, step: int) -> str:
        name, camera_name = self.index.names[row].decode(), self.index.cameras[camera]
        store, file = self._store, self.index.source
        if store is not None and int(store.frame_files[row, camera]) >= 0:
            file = self._path(store, row, camera, step)
            if store.frame_names is not None:
                return str(file)
        return f"{file}, episode {name}, {camera_name}, step {step}"

    def _close_file(self, file: int) -> None:
        if file in self._open_files:
            os.close(self._open_files.pop(file))

    def close(self) -> None:
        """Close the open files."""
        for file in list(self._open_files):
            self._close_file(file)
        if self._decoder is not None and self._decoder[0] == os.getpid():
            self._decoder[1].close()
        self._decoder = None


def _raise_file_limit(num_files: int) -> int:
    """Raise this process's limit of open files, and return how many of `num_files` it may open."""
    wanted = num_files + _FILES_OF_OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return num_files if soft == resource.RLIM_INFINITY else max(1, soft - _FILES_OF_OTHERS)
