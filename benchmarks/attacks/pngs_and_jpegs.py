"""PNG and JPEG files: damaged bytes, headers that state other sizes, and unusual kinds."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from attacks.campaign import Campaign
from attacks.damages import damage_bytes, write
from mcr.data import pictures
from mcr.errors import UserError


class PngsAndJpegs(Campaign):
    def sound(self, folder: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (folder / "own.png").write_bytes(pictures.encode_png(pixels))
        (folder / "own.jpg").write_bytes(pictures.encode_jpeg(pixels))
        image.save(folder / "plain.png")
        image.save(folder / "progressive.jpg", progressive=True)
        image.convert("CMYK").save(folder / "four.jpg")
        for mode in ("P", "L", "LA", "RGBA", "1"):
            image.convert(mode).save(folder / f"{mode}.png")
        grey = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 85
        Image.fromarray(grey).save(folder / "grey16.png")

    def damage(self, folder: Path, draw: random.Random) -> str:
        path = draw.choice(sorted(folder.iterdir()))
        data = path.read_bytes()
        kind = draw.random()
        if kind < 0.3:
            data = _state_size(data, draw)
        elif kind < 0.4 and path.suffix == ".png":
            data = _bomb(draw)
        else:
            data = damage_bytes(data, draw)
            if path.suffix == ".png" and draw.random() < 0.5:
                data = _repair(data)
        write(folder / "damaged", data)
        return f"{path.name} {kind:.2f} {data[:64]!r}"

    def read(self, folder: Path) -> None:
        data = (folder / "damaged").read_bytes()
        try:
            size = pictures.size_of(data)
            decoded = pictures.decode(data)
            into = pictures.decode(data, np.empty((*size, 3), np.uint8))
        except ValueError as error:
            raise UserError(str(error)) from error
        assert decoded.shape == (*size, 3) and np.array_equal(decoded, into)


def _state_size(data: bytes, draw: random.Random) -> bytes:
    """Write other numbers into the place of height and width."""
    size = draw.choice(((65500, 65500), (65535, 1), (0, 0), (1, 65500), (24, 33), (4096, 4096)))
    damaged = bytearray(data)
    if data.startswith(b"\x89PNG"):
        large = draw.random() < 0.3
        width, height = (2**31 - 1, 2**31 - 1) if large else size
        damaged[16:24] = struct.pack(">II", width, height)
        return _repair(bytes(damaged))
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        if (place := data.find(marker)) >= 0:
            damaged[place + 5 : place + 9] = struct.pack(">HH", *size)
    return bytes(damaged)


def _bomb(draw: random.Random) -> bytes:
    """Return a PNG of which a few bytes decompress to many."""
    width, height = draw.choice(((8000, 8000), (30_000, 2_000), (100, 60_000)))
    depth, colour = draw.choice(((8, 2), (8, 6), (16, 0), (8, 0), (1, 0)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, draw.randrange(2))
    content = zlib.compress(b"\0" * draw.choice((10, 10**6, 3 * 10**7)))
    chunks = [(b"IHDR", header)]
    if draw.random() < 0.5:
        chunks.append((b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10**8)))
    chunks += [(b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, part) for kind, part in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def _repair(data: bytes) -> bytes:
    """Write the right checksum into every chunk, so that decoders look inside."""
    stream, out = io.BytesIO(data), io.BytesIO()
    out.write(stream.read(8))
    while len(head := stream.read(8)) == 8:
        size, kind = struct.unpack(">I", head[:4])[0], head[4:]
        content = stream.read(min(size, len(data)))
        stream.read(4)
        out.write(head + content + struct.pack(">I", zlib.crc32(kind + content)))
    return out.getvalue()
