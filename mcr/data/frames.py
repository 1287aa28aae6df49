"""Frames: (row of the index, camera, step) -> uint8 pixels, from files or out of the shards.

One `pread` and one decode per frame; nothing is cached, listed or unpickled. Shards are opened when
they are first needed and stay open. A reader belongs to one process: the loader makes one per
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

# What a network file system reports when a server or a path to it is away for a moment. A run of
# days must not end by it, nor draw other samples because of it (as data.on_error=skip would), so
# such a read is made again. Anything that lasts longer than these waits is an error.
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
_WAITS_S = (1.0, 5.0, 25.0)

_FILES_OF_OTHERS = 256  # sockets, logs, libraries, shared memory: what a process opens besides


class FrameReader:
    """Reads single frames of an index.

    Raises this process's limit of open files, as far as it may, to hold all shards; where that is
    not enough, the shard that was not used for longest is closed.
    """

    def __init__(self, index: Index):
        self._index = index
        self._open_files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, oldest first
        self._max_open_files = _raise_file_limit(len(index.info["shards"]))

    def read(self, row: int, camera: int, step: int, out: np.ndarray | None = None) -> np.ndarray:
        """Pixels uint8 [H, W, 3] of `step` in episode `row`, as seen by `index.cameras[camera]`.

        out: uint8 [H, W, 3], contiguous, to decode into

        Raises UserError naming file, episode, camera and step if the frame is not readable or does
        not have the data set's size.
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
            # No read-ahead: the next frame lies elsewhere. Linux notices that by itself on a local
            # disk (benchmarks/index.py), other systems and file systems may not.
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
    """How many of `num_files` this process may hold open, after raising its limit if need be."""
    wanted = num_files + _FILES_OF_OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return num_files if soft == resource.RLIM_INFINITY else max(1, soft - _FILES_OF_OTHERS)
