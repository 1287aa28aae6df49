"""Videos whose frames can be told apart, for tests: the frame at `step` shows `colour(step)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def colour(step: int) -> int:
    """The grey of a frame, far from that of its neighbours: 8, 91, 174, 17, ..."""
    return 8 + (83 * step) % 240


def frame(step: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), colour(step), np.uint8)


def write_video(
    path: Path,
    length: int,
    fps: int = 15,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    faststart: bool = False,
    first: int = 0,
    draw: Callable[[int, tuple[int, int]], np.ndarray] = frame,
    **options: str,
) -> Path:
    """Write `length` frames, those of the steps `first`, `first` + 1, ..."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    flags = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for step in range(first, first + length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(step, size), "rgb24")))
        container.mux(stream.encode())
    return path


def shows(pixels: np.ndarray, step: int) -> bool:
    """Is this the frame of `step`, up to the codec?"""
    return bool(np.abs(pixels.astype(float) - colour(step)).max() < 20)


def cut_off(path: Path, share: float) -> Path:
    """Keep the first `share` of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
