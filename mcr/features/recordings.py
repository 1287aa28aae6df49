"""Recordings: robot data of any format -> episodes of frames, to compute features of.

A thin view of the index: which cameras, which frames. Actions and states are read elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mcr.data.frames import FrameReader
from mcr.data.index import Index, open_index
from mcr.data.schema import Schema
from mcr.errors import UserError, require_choice


class Recordings:
    """Episodes of frames. It can be sent to another process, which opens the files anew.

    names, lengths: of the episodes
    cameras:        those of which features can be computed
    fingerprint:    a hash that changes with names, signals and pictures
    """

    def __init__(self, index: Index):
        self.index = index
        self.names = [name.decode() for name in index.names]
        self.lengths = [int(length) for length in index.lengths]
        self.cameras = index.cameras
        self.fingerprint = index.fingerprint
        self._reader = FrameReader(index)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recordings, (self.index,)

    def has(self, episode: int, camera: str) -> bool:
        """Does an episode have a camera?"""
        return bool(self.index.sizes[episode, self.cameras.index(camera), 0])

    def frames(self, episode: int, camera: str) -> Iterator[np.ndarray]:
        """All frames of one camera in order, uint8 [H, W, 3], RGB.

        Raises UserError that names a frame which cannot be read, or the episode if it lacks the
        camera.
        """
        if not self.has(episode, camera):
            raise UserError(f"{self.index.source}: {self.names[episode]} has no camera {camera!r}")
        with contextlib.closing(self._reader) as reader:
            yield from reader.episode(episode, self.cameras.index(camera))


def open_recordings(
    source: str | Path, index: str | Path | None = None, schema: str | Path | Schema | None = None
) -> Recordings:
    """Open data of any format. The arguments are those of `open_index`, and so are the errors."""
    return Recordings(open_index(source, index, schema=schema))


def require_cameras(recordings: Recordings, cameras: Iterable[str] | None) -> tuple[str, ...]:
    """The chosen cameras, all if none is chosen. Raises UserError for one that does not exist."""
    chosen = tuple(cameras) if cameras else recordings.cameras
    return tuple(require_choice("camera", camera, recordings.cameras) for camera in chosen)
