"""The pictures of an extraction: stored or decoded frames -> the content of files of the tree.

png    pixels; of a JPEG, those that TensorFlow decodes
jpeg   the stored bytes; pictures that are not stored as JPEG are encoded with quality 95
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mcr.data import pictures
from mcr.data.episode import Episode, Pictures
from mcr.data.regular_files import read_bytes
from mcr.data.sources.source import Decoder

Stored = bytes | memoryview


def _to_png(data: Stored) -> bytes:
    return pictures.encode_png(pictures.decode(data))


def _to_jpeg(data: Stored) -> bytes:
    """Return the stored bytes if they are a JPEG. Raises ValueError if its end is missing."""
    if bytes(data[:2]) != b"\xff\xd8":
        return pictures.encode_jpeg(pictures.decode(data))
    if bytes(data[-2:]) != b"\xff\xd9":
        raise ValueError("a truncated JPEG: no end-of-image marker")
    pictures.size_of(data)
    return bytes(data)


# --format -> suffix, how a stored picture is written, how pixels are written
FORMATS: dict[str, tuple[str, Callable[[Stored], bytes], Callable[[np.ndarray], bytes]]] = {
    "png": (".png", _to_png, pictures.encode_png),
    "jpeg": (".jpg", _to_jpeg, pictures.encode_jpeg),
}


def files_of(
    episode: Episode, camera: str, root: Path, decoder: Decoder | None, format: str
) -> Iterator[bytes]:
    """Yield the content of the file of every frame, in time order.

    root:    the folder that `Pictures.file` is relative to
    decoder: of pictures that lie in no file

    Raises OSError, and ValueError for a frame that cannot be read.
    """
    _, encode, encode_pixels = FORMATS[format]
    place = episode.pictures[camera]
    if episode.payload:
        yield from (encode(episode.encoded_frame(camera, step)) for step in range(episode.length))
    elif place.file:
        yield from map(encode, _read(place, root))
    else:
        assert decoder is not None, "pictures that lie in no file have a decoder"
        yield from map(encode_pixels, decoder.frames(episode.key, camera, range(episode.length)))


def _read(place: Pictures, root: Path) -> Iterator[bytes]:
    """Yield the stored bytes of frames that are files, or byte ranges of a file."""
    if place.names is not None:
        yield from (read_bytes(root / place.file / name) for name in place.names)
        return
    assert place.offsets is not None and place.lengths is not None
    with (root / place.file).open("rb") as file:
        for offset, length in zip(place.offsets.tolist(), place.lengths.tolist(), strict=True):
            yield os.pread(file.fileno(), length, offset)
