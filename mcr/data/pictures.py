"""Pictures in memory: encoded bytes <-> uint8 pixels [H, W, 3], RGB.

This module knows JPEG and PNG, but nothing of files, episodes or tensors. Extraction encodes with
it. Cleaning and the loader decode with it.

JPEG is decoded with the fast integer DCT and smooth chroma upsampling. The pixels are bit for bit
those of TensorFlow's default decoder, so a PNG tree and its shards hold the same pixels. PNG is
written with the Up filter on every row and ISA-L's deflate at level 1. Its files are as small as
those of other encoders, it is about ten times faster (`benchmarks/extract.py`), and decoding is
fast, too.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pyspng
import simplejpeg
from isal import isal_zlib
from PIL import Image

_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB, _RGBA = 2, 6  # PNG colour types
_UP = 2  # PNG filter type: each byte minus the byte above it, modulo 256
_MAX_DEFLATE_RATIO = 1032  # a property of the format
MAX_PIXELS = (
    2**26
)  # of a picture, for example 8192 x 8192; more are refused before they are decoded
_MAX_SCANS = (
    100  # of a progressive JPEG, which has about ten; each one costs a pass over all pixels
)


def decode(data: bytes | memoryview, out: np.ndarray | None = None) -> np.ndarray:
    """Decode a JPEG or PNG to uint8 [H, W, 3]. Alpha is dropped, as upstream's reader does.

    out: a contiguous array of the picture's size to decode into

    Raises ValueError if the bytes are no complete picture, not of the size of `out`, or if the
    picture has more than MAX_PIXELS.
    """
    size = size_of(data)
    if out is not None and size != out.shape[:2]:
        raise ValueError(f"a picture of {size} (height, width), not {out.shape[:2]}")
    return _decode_png(data, out) if bytes(data[:1]) == b"\x89" else _decode_jpeg(data, out)


def decode_jpeg(data: bytes | memoryview) -> np.ndarray:
    """Decode a JPEG to uint8 [H, W, 3], identical to TensorFlow's default. Raises ValueError."""
    size_of(data)
    return _decode_jpeg(data, None)


def _decode_jpeg(data: bytes | memoryview, out: np.ndarray | None) -> np.ndarray:
    content = bytes(data)
    if content[-2:] != b"\xff\xd9":  # or the decoder would fill the missing rows with grey
        raise ValueError("a truncated JPEG: no end-of-image marker")
    if (scans := content.count(b"\xff\xda")) > _MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans; at most {_MAX_SCANS} are decoded")
    return simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=False, buffer=out)


def size_of(data: bytes | memoryview) -> tuple[int, int]:
    """Read (height, width) from the header of a JPEG or PNG.

    Raises ValueError if it is none, or if the picture has no pixels or more than MAX_PIXELS.
    """
    if bytes(data[:3]) == _JPEG_SIGNATURE:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    elif bytes(data[:8]) == _PNG_SIGNATURE and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
    else:
        raise ValueError(_not_a_picture(data))
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"a picture of {height} x {width} pixels; at most {MAX_PIXELS:,} are read")
    return height, width


def _not_a_picture(data: bytes | memoryview) -> str:
    return f"neither JPEG nor PNG: {len(data)} bytes beginning with {bytes(data[:8])!r}"


# --------------------------------------------------------------------------- PNG


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as a PNG, losslessly."""
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, no interlace
    data = isal_zlib.compress(filtered, 1)
    return b"".join(
        [_PNG_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    )


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """Encode uint8 [H, W, 3] as a JPEG with halved chroma."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = isal_zlib.crc32(content, isal_zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def _decode_png(data: bytes | memoryview, out: np.ndarray | None) -> np.ndarray:
    """Decode a PNG. Those of `encode_png` decode faster."""
    pixels = _decode_up_filtered(memoryview(data), out)
    if pixels is None:
        pixels = _decode_any_png(bytes(data))
        if out is not None:
            out[:] = pixels
    return pixels


def _decode_up_filtered(data: memoryview, out: np.ndarray | None) -> np.ndarray | None:
    """Decode a PNG that `encode_png` wrote. Return None for any other PNG."""
    header_end = 33  # signature (8), then the IHDR chunk (12 + 13)
    if len(data) < header_end + 8 or data[header_end + 4 : header_end + 8] != b"IDAT":
        return None
    width, height, *mode = struct.unpack(">IIBBBBB", data[16:29])
    (length,) = struct.unpack(">I", data[header_end : header_end + 4])
    begin = header_end + 8
    if mode != [8, 2, 0, 0, 0] or data[begin + length + 8 : begin + length + 12] != b"IEND":
        return None
    num_bytes = height * (1 + width * 3)
    if num_bytes > _MAX_DEFLATE_RATIO * length:  # a damaged size must not allocate gigabytes
        return None
    try:
        raw = isal_zlib.decompress(data[begin : begin + length], bufsize=num_bytes)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub names no base class
        raise ValueError(f"a damaged PNG: {error}") from error
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * 3)
    if (rows[:, 0] != _UP).any():
        return None
    pixels = np.empty((height, width, 3), np.uint8) if out is None else out
    np.add.accumulate(rows[:, 1:], axis=0, out=pixels.reshape(height, width * 3))
    return pixels


def _check_chunks(data: bytes) -> None:
    """Raise ValueError unless all chunks up to IEND are there and have the right CRC."""
    position, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        header = data[position : position + 8]
        if len(header) < 8:
            raise ValueError("a truncated PNG: no IEND chunk")
        (length,), kind = struct.unpack(">I", header[:4]), header[4:]
        end = position + 8 + length
        crc = isal_zlib.crc32(memoryview(data)[position + 4 : end])
        if data[end : end + 4] != struct.pack(">I", crc):
            raise ValueError(f"a damaged PNG: a bad CRC, or cut off, in the chunk at {position}")
        position = end + 4


def _decode_any_png(data: bytes) -> np.ndarray:
    _check_chunks(data)  # pyspng does not check, and Pillow fills missing rows with black
    try:
        depth, colour_type = data[24:26]
        if depth == 8 and colour_type in (_RGB, _RGBA):
            return pyspng.load(data, format="RGB")
        image = Image.open(io.BytesIO(data))
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            grey = (np.asarray(image) >> 8).astype(np.uint8)  # as its own 16-bit colours
            return np.stack([grey] * 3, axis=-1)
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise ValueError(f"a damaged PNG: {error}") from error
