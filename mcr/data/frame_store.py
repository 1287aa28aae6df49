"""Where frames lie: the arrays that an index of addressable frames and a pack have in common."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from mcr.data.indexing import PLACE_DTYPES, place_files


class FrameStore:
    """Mapped arrays in the folder `path`: which file holds a frame, and which bytes of it."""

    path: Path

    @property
    def root(self) -> Path:
        """The folder that `files` are relative to."""
        return self.path

    @cached_property
    def sizes(self) -> np.ndarray:
        """(height, width) of the frames of each episode and camera, 0 if absent: int32 [N, C, 2]"""
        return np.load(self.path / "sizes.npy", mmap_mode="r")

    @cached_property
    def files(self) -> np.ndarray:
        """Files that hold frames, or folders of frames, as bytes, relative to `root`."""
        return np.load(self.path / "files.npy", mmap_mode="r")

    @cached_property
    def frame_files(self) -> np.ndarray:
        """Which of `files` holds an episode's frames of a camera, -1 if absent: int32 [N, C]"""
        return np.load(self.path / "frame_files.npy", mmap_mode="r")

    @cached_property
    def frame_places(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Offsets and lengths of the frames of each camera: int64 and int32 [total_steps]."""
        return tuple(self._places(camera) for camera in range(self.sizes.shape[1]))

    def _places(self, camera: int) -> tuple[np.ndarray, np.ndarray]:
        offsets, lengths = (
            np.memmap(path, dtype, mode="r")
            for path, dtype in zip(place_files(self.path, camera), PLACE_DTYPES, strict=True)
        )
        return offsets, lengths

    @cached_property
    def frame_names(self) -> np.ndarray | None:
        """The names of the frames' files, one after the other: bytes; None if frames are ranges."""
        path = self.path / "frame_names.bin"
        return np.memmap(path, np.uint8, mode="r") if path.is_file() else None
