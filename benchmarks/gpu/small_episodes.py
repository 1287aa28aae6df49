"""What `small_data.py` does with one episode, in workers: PNG folders <-> AVIF sequences."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from mcr.data.pictures import encode_png

_SPEED = 8  # of the encoder, 0 (slowest) .. 10


def shrink_episode(episode: Path, side: int, quality: int) -> dict[str, bytes]:
    """The files of an episode in the archive, by name."""
    files = {}
    for path in sorted(episode.iterdir()):
        if (path / "0.png").exists():
            content = sequence(path, side, quality)
            files[f"{episode.name}/{path.name}.avif"] = content
        else:
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
            files |= {str(file.relative_to(episode.parent)): file.read_bytes() for file in inside}
    return files


def sequence(folder: Path, side: int, quality: int) -> bytes:
    """The AVIF of a camera's pictures."""
    paths = sorted(folder.glob("*.png"), key=lambda path: int(path.stem))
    pictures = [resized(Image.open(path), side) for path in paths]
    content = io.BytesIO()
    pictures[0].save(
        content,
        "AVIF",
        save_all=True,
        append_images=pictures[1:],
        quality=quality,
        speed=_SPEED,
        max_threads=1,
    )
    return content.getvalue()


def resized(picture: Image.Image, side: int) -> Image.Image:
    """A picture whose shorter side has at most `side` pixels."""
    scale = min(1, side / min(picture.size))
    width, height = (round(length * scale) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def expand_episode(small: Path, tree: Path) -> None:
    """Write the folder of an episode."""
    shutil.copytree(small, tree / small.name, ignore=shutil.ignore_patterns("*.avif"))
    for path in small.glob("*.avif"):
        folder = tree / small.name / path.stem
        folder.mkdir()
        with Image.open(path) as pictures:
            for step in range(getattr(pictures, "n_frames", 1)):
                pictures.seek(step)
                pixels = np.ascontiguousarray(pictures.convert("RGB"))
                (folder / f"{step}.png").write_bytes(encode_png(pixels))
