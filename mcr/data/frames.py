"""Frames: (row of the index, view, step) -> uint8 pixels, from files or out of the shards.

One `pread` and one decode per frame; nothing is cached, listed or unpickled. A reader
belongs to one process: the loader makes one per worker.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np

from mcr.data import pictures
from mcr.data.index import Index
from mcr.errors import UserError

_MAX_OPEN_FILES = 256  # DROID has 2,048 shards; common limits are 1,024 open files for everything


class FrameReader:
    """Reads single frames of an index."""

    def __init__(self, index: Index):
        self._index = index
        self._open_files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, oldest first

    def read(self, row: int, view: int, step: int, out: np.ndarray | None = None) -> np.ndarray:
        """Pixels uint8 [H, W, 3] of `step` in episode `row`, as seen by `index.views[view]`.

        out: uint8 [H, W, 3], contiguous, to decode into

        Raises UserError naming file, episode, view and step if the frame is not readable or does
        not have the data set's size.
        """
        if out is None:
            out = np.empty((*self._index.frame_size, 3), np.uint8)
        try:
            return pictures.decode(self._stored_bytes(row, view, step), out)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._place(row, view, step)}: {error}") from error

    def _stored_bytes(self, row: int, view: int, step: int) -> bytes:
        if self._index.kind == "tree":
            return self._path(row, view, step).read_bytes()
        position = int(self._index.starts[row]) + step
        length = int(self._index.frame_lengths[position, view])
        offset = int(self._index.frame_offsets[position, view])
        data = os.pread(self._descriptor(int(self._index.shards[row])), length, offset)
        if len(data) < length:
            raise ValueError(f"the shard ends {length - len(data)} bytes before the frame does")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard in self._open_files:
            self._open_files.move_to_end(shard)
        else:
            if len(self._open_files) >= _MAX_OPEN_FILES:
                os.close(self._open_files.popitem(last=False)[1])
            descriptor = os.open(
                self._index.source / self._index.info["shards"][shard], os.O_RDONLY
            )
            if hasattr(os, "posix_fadvise"):  # no read-ahead: the next frame lies elsewhere
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self._open_files[shard] = descriptor
        return self._open_files[shard]

    def _path(self, row: int, view: int, step: int) -> Path:
        name = self._index.names[row].decode()
        folder = self._index.source / name / self._index.views[view]
        return folder / f"{step}{self._index.suffix}"

    def _place(self, row: int, view: int, step: int) -> str:
        if self._index.kind == "tree":
            return str(self._path(row, view, step))
        shard = self._index.info["shards"][int(self._index.shards[row])]
        name = self._index.names[row].decode()
        return (
            f"{self._index.source / shard}, episode {name}, {self._index.views[view]}, step {step}"
        )

    def close(self) -> None:
        """Close the open shards."""
        while self._open_files:
            os.close(self._open_files.popitem()[1])
