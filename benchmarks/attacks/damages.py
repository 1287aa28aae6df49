"""Ways to damage files of any kind: bytes, kinds of files, names, and values in JSON.

Every function takes a `random.Random`, so a case can be repeated by its seed and number.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXTREMES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    -(10**18),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "1e9",
    "x" * 100_000,
    "../../../etc/passwd",
    "/etc/passwd",
    "{0.__class__}",
    "{episode_index:999999999d}",
    "\0",
    "\ud800",
    'a\nb,c"d',
    [],
    {},
    [[]],
    [0] * 1000,
    {"": {}},
)


def write(path: Path, data: bytes) -> None:
    """Replace a file, which may be a hard link to a sound one."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    path.write_bytes(data)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# --------------------------------------------------------------------------- bytes


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """Apply one to three changes of bytes."""
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if damaged:
            draw.choice(_BYTES)(damaged, draw)
    return bytes(damaged)


def _flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        data[_place(data, draw)] ^= 1 << draw.randrange(8)


def _overwrite(data: bytearray, draw: random.Random) -> None:
    place, size = _place(data, draw), draw.choice((1, 2, 4, 8, 32))
    block = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80", draw.randbytes(1))) * size
    data[place : place + size] = block


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[_place(data, draw) :]


def _remove(data: bytearray, draw: random.Random) -> None:
    place = _place(data, draw)
    del data[place : place + draw.choice((1, 4, 16, 256, 4096))]


def _insert(data: bytearray, draw: random.Random) -> None:
    place, source, size = _place(data, draw), _place(data, draw), draw.choice((1, 4, 16, 256))
    block = bytes(data[source : source + size]) if draw.random() < 0.5 else draw.randbytes(size)
    data[place:place] = block


def _move(data: bytearray, draw: random.Random) -> None:
    place, source, size = _place(data, draw), _place(data, draw), draw.choice((4, 16, 64))
    data[place : place + size] = data[source : source + size]


def _place(data: bytearray, draw: random.Random) -> int:
    """Return a position; half of them are near the beginning or the end, where headers lie."""
    size = max(1, len(data))
    near = min(size, 600)
    return draw.choice(
        (draw.randrange(size), draw.randrange(size), draw.randrange(near))
        + (size - 1 - draw.randrange(near),)
    )


_BYTES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_bits,
    _flip_bits,
    _overwrite,
    _cut,
    _remove,
    _insert,
    _move,
)


# --------------------------------------------------------------------------- files


def damage_file(path: Path, draw: random.Random) -> str:
    """Damage the bytes of a file, or rarely its kind."""
    if draw.random() < 0.1:
        return replace_file(path, draw)
    write(path, damage_bytes(path.read_bytes(), draw))
    return f"bytes of {path.name}"


def replace_file(path: Path, draw: random.Random) -> str:
    """Put something else in the place of a file."""
    kind = draw.choice(("pipe", "zeros", "loop", "folder", "missing", "empty", "holes", "full"))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "full":
        path.symlink_to("/dev/full")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "holes":
        path.touch()
        os.truncate(path, 2**40)
    return f"{path.name} is {kind}"


def add_odd_entry(folder: Path, draw: random.Random) -> str:
    """Add something that does not belong there to a folder of a data set."""
    folders = [folder, *sorted(p for p in folder.rglob("*") if p.is_dir())]
    place = draw.choice(folders)
    name = draw.choice(
        (
            b"\xff\xfe.png",
            b"image_\xe9",
            b" ",
            b"a\nb",
            b"0000_image",
            b".hidden",
            b"1700000000.png",
        )
    )
    path = Path(os.fsdecode(os.fsencode(place) + b"/" + name))
    kind = draw.choice(("file", "folder", "loop", "copy"))
    with contextlib.suppress(FileExistsError):
        if kind == "file":
            path.write_bytes(draw.randbytes(50))
        elif kind == "loop":
            path.symlink_to(draw.choice((".", "..", path.name)))
        elif kind == "folder" or place == folder:
            path.mkdir()
        else:
            shutil.copytree(place, path, symlinks=True)
    return f"{kind} {name!r} in {place.name}"


# --------------------------------------------------------------------------- JSON


def damage_json(path: Path, draw: random.Random) -> str:
    """Change a value, remove one, or nest it, somewhere in a JSON file or in a line of JSON."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = draw.randrange(len(lines))
    content = json.loads(lines[number])
    what = change_value(content, draw)
    lines[number] = json.dumps(content)
    if draw.random() < 0.03:
        depth = draw.choice((500, 100_000))
        lines[number], what = "[" * depth + "]" * depth, f"nested {depth} deep"
    write(path, "\n".join(lines).encode())
    return f"{path.name}: {what}"


def change_value(content: Any, draw: random.Random) -> str:
    """Change one value somewhere inside of lists and mappings."""
    places: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        for key in keys:
            places.append((item, key))
            if isinstance(item[key], dict | list):
                waiting.append(item[key])
    if not places:
        return "nothing"
    item, key = draw.choice(places)
    if draw.random() < 0.2:
        del item[key]
        return f"{key!r} removed"
    value = draw.choice(EXTREMES)
    if draw.random() < 0.1 and isinstance(item, dict):
        item[draw.choice(("", "\ud800", "a/b", "x" * 5000))] = item.pop(key)
        return f"{key!r} renamed"
    item[key] = json.loads(json.dumps(value))
    return f"{key!r} = {repr(value)[:40]}"
