"""Frames: (row of the index, camera, step) -> uint8 pixels, from a tree's files or from shards.

A frame costs one `pread` and one decode. Nothing is cached, listed or unpickled. A shard is opened
when it is first needed and stays open. A reader belongs to one process, so the loader makes one per
worker.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

from mcr.data import pictures
from mcr.data.index import Index
from mcr.errors import UserError

# A network file system reports these errors when a server is unreachable for a moment. They must
# neither end a run of days nor change its samples (as data.on_error=skip would), so such a read is
# repeated. What lasts longer than these waits is an error.
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
_WAITS_S = (1.0, 5.0, 25.0)

_FILES_OF_OTHERS = 256  # a process also opens sockets, logs, libraries and shared memory


class FrameReader:
    """Reads single frames of an index.

    It raises this process's limit of open files to hold all shards. If the system allows fewer, it
    closes the least recently used shard.
    """

    def __init__(self, index: Index):
        self._index = index
        self._open_files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, oldest first
        self._max_open_files = _raise_file_limit(len(index.info["shards"]))

    def read(self, row: int, camera: int, step: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return the frame of `index.cameras[camera]` at `step` of episode `row`: uint8 [H, W, 3].

        out: a contiguous array to decode into, uint8 [H, W, 3]

        Raises UserError that names file, episode, camera and step if the frame cannot be read or
        does not have the data set's size.
        """
        if out is None:
            out = np.empty((*self._index.frame_size, 3), np.uint8)
        try:
            return pictures.decode(self._read_patiently(row, camera, step), out)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._place(row, camera, step)}: {error}") from error

    def _read_patiently(self, row: int, camera: int, step: int) -> bytes:
        for wait_s in _WAITS_S:
            try:
                return self._stored_bytes(row, camera, step)
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    raise
                place = self._place(row, camera, step)
                print(f"{place}: {error}; again in {wait_s:g} s", file=sys.stderr)
            self._close_shard(int(self._index.shards[row]))  # a stale handle stays stale
            time.sleep(wait_s)
        return self._stored_bytes(row, camera, step)

    def _stored_bytes(self, row: int, camera: int, step: int) -> bytes:
        if self._index.kind == "tree":
            return self._path(row, camera, step).read_bytes()
        position = int(self._index.starts[row]) + step
        length = int(self._index.frame_lengths[position, camera])
        offset = int(self._index.frame_offsets[position, camera])
        data = os.pread(self._descriptor(int(self._index.shards[row])), length, offset)
        if len(data) < length:
            raise ValueError(f"the shard ends {length - len(data)} bytes before the frame does")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard in self._open_files:
            self._open_files.move_to_end(shard)
        else:
            if len(self._open_files) >= self._max_open_files:
                self._close_shard(next(iter(self._open_files)))
            descriptor = os.open(
                self._index.source / self._index.info["shards"][shard], os.O_RDONLY
            )
            # Read-ahead is useless because the next frame lies elsewhere. Linux notices that itself
            # on a local disk (benchmarks/index.py). Other systems and file systems may not.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self._open_files[shard] = descriptor
        return self._open_files[shard]

    def _path(self, row: int, camera: int, step: int) -> Path:
        name = self._index.names[row].decode()
        folder = self._index.source / name / self._index.cameras[camera]
        return folder / f"{step}{self._index.suffix}"

    def _place(self, row: int, camera: int, step: int) -> str:
        if self._index.kind == "tree":
            return str(self._path(row, camera, step))
        shard = self._index.info["shards"][int(self._index.shards[row])]
        name = self._index.names[row].decode()
        return (
            f"{self._index.source / shard}, episode {name}, {self._index.cameras[camera]}, "
            f"step {step}"
        )

    def _close_shard(self, shard: int) -> None:
        if shard in self._open_files:
            os.close(self._open_files.pop(shard))

    def close(self) -> None:
        """Close the open shards."""
        for shard in list(self._open_files):
            self._close_shard(shard)


def _raise_file_limit(num_files: int) -> int:
    """Raise this process's limit of open files, and return how many of `num_files` it may open."""
    wanted = num_files + _FILES_OF_OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return num_files if soft == resource.RLIM_INFINITY else max(1, soft - _FILES_OF_OTHERS)
