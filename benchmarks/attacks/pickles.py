"""Pickles: damaged ones, some made of random instructions, and some that would run code."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from attacks.campaign import Campaign
from attacks.damages import EXTREMES, damage_bytes, write
from mcr.data.other_data import OTHER_DATA, read_other_data
from mcr.data.sources.tree_episode import flatten, stack
from mcr.errors import UserError

CANARY = "canary"  # a file that appears if code of an attack runs; see `running.py`


class Call:
    """An object that is pickled as a call of `function`, with a state."""

    def __init__(self, function: Any, arguments: tuple, state: Any = None):
        self.reduction = (
            (function, arguments, state) if state is not None else (function, arguments)
        )

    def __reduce__(self) -> tuple:
        return self.reduction


def sound_data() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    steps = range(12)
    return {
        "cartesian_position": [draw.normal(size=6) for _ in steps],
        "gripper_position": [draw.normal(size=1) for _ in steps],
        "action_dict": [{"a": draw.normal(size=2), "b": np.float32(1)} for _ in steps],
        "is_first": [np.bool_(step == 0) for step in steps],
        "discount": [1.0 for _ in steps],
        "transposed": np.asfortranarray(draw.normal(size=(12, 3)))[:, ::2],
        "text": "pick it up",
        "none": [None for _ in steps],
    }


class Pickles(Campaign):
    def sound(self, folder: Path) -> None:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(sound_data(), protocol))

    def damage(self, folder: Path, draw: random.Random) -> str:
        sound = (folder / f"{draw.randrange(6)}.pkl").read_bytes()
        kind = draw.choice(("bytes", "bytes", "instructions", "instructions", "calls", "values"))
        data = {
            "bytes": lambda: damage_bytes(sound, draw),
            "instructions": lambda: instructions(sound, draw),
            "calls": lambda: call(folder, draw),
            "values": lambda: _values(draw),
        }[kind]()
        write(folder / OTHER_DATA, data)
        return f"{kind} {data[:200]!r}"

    def read(self, folder: Path) -> None:
        data = read_other_data(folder / OTHER_DATA)
        try:
            for key, rows in flatten(data):
                stack(key, rows)
        except ValueError as error:  # what the reader of trees turns into a problem
            raise UserError(str(error)) from error


_PIECES = [
    b"r\xff\xff\xff\x7f",  # LONG_BINPUT
    b"p2147483647\n",
    b"q\x00",
    b"h\x00",
    b"\x94",
    b"b",
    b"R",
    b"0",
    b"1",
    b"2",
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"]",
    b"}",
    b"e",
    b"a",
    b"s",
    b"u",
    b")",
    b"\x81",
    b"\x8f",
    b"\x90",
    b"\x91",
    b"Q",
    b"\x82\x01",
    b"\x97",
    b"\x98",
    b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"\x8d" + b"\xff" * 7 + b"\x00",
    b"\x96" + b"\x00" * 5 + b"\x01\x00\x00",
    b"B\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"\x8a\xff" + b"\xff" * 255,
    b"\x8b\xff\xff\xff\x7f",
    b"\x8c\x0bV2000000000",
    b"\x8c\x06U99999",
    b"\x8c\x02O8",
    b"cnumpy\ndtype\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\nfrombuffer\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
    b"c_codecs\nencode\n",
    b"cnumpy\ndtype\n(\x8c\x02O8\x89\x88tR(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
    b"N",
    b"K\x05",
    b"J\xff\xff\xff\x7f",
    b"C\x08AAAAAAAA",
    b"(K\x00K\x01l",
    b".",
]


def instructions(sound: bytes, draw: random.Random) -> bytes:
    """Replace, insert or repeat instructions, with arguments that are large or wrong."""
    data = bytearray(sound)
    for _ in range(draw.choice((1, 2, 5, 30))):
        place = draw.randrange(2, len(data))
        piece = draw.choice(_PIECES) * draw.choice((1, 1, 1, 3, 1000))
        data[place : place + draw.choice((0, 0, 1, len(piece)))] = piece
    if draw.random() < 0.3:
        body = b"".join(draw.choice(_PIECES) for _ in range(draw.randrange(1, 60)))
        return b"\x80\x04" + body + b"."
    return bytes(data)


def call(folder: Path, draw: random.Random) -> bytes:
    """Return a pickle that calls something that would write the canary."""
    canary = str(folder / CANARY)
    command = f"touch {canary}"
    code = f"open({canary!r}, 'w')"
    calls = [
        (os.system, (command,)),
        (subprocess.Popen, (command.split(),)),
        (exec, (code,)),
        (eval, (code,)),
        (open, (canary, "w")),
        (io.FileIO, (canary, "w")),
        (np.savetxt, (canary, [1])),
        (getattr, ("text", "encode")),
        (np.dtype, (f"V{10**9}",)),
        (np.dtype, ([("a", "O")],)),
        (np.load, (canary,)),
        (np.frombuffer, (b"AAAAAAAA", "O")),
        (np.ndarray, ((2**40,),)),
        (bytearray, (2**40,)),
    ]
    function, arguments = draw.choice(calls)
    state = draw.choice((None, None, {"__dict__": 1}, (None, {"__code__": 1})))
    data: Any = {"action": [Call(function, arguments, state)]}
    raw = pickle.dumps(data, draw.randrange(6))
    return damage_bytes(raw, draw) if draw.random() < 0.3 else raw


def _values(draw: random.Random) -> bytes:
    """Return a pickle of plain values that are large or do not belong there."""
    data: Any = sound_data()
    if draw.random() < 0.2:
        shared: Any = ["x" * 1000]
        for _ in range(draw.choice((5, 15, 40))):
            shared = [shared] * 10 if draw.random() < 0.5 else {"a": shared, "b": shared}
        data["shared"] = shared
    elif draw.random() < 0.2:
        endless: list = []
        endless.append(endless)
        data["endless"] = [endless, endless]
    elif draw.random() < 0.2:
        data["rows"] = [1.0, "x" * 10_000] * 20_000
    elif draw.random() < 0.2:
        data = {(k * (2**61 - 1)): 0 for k in range(20_000)} | data
    else:
        key = draw.choice(list(data))
        rows = data[key]
        if isinstance(rows, list) and draw.random() < 0.5:
            rows[draw.randrange(len(rows))] = draw.choice(EXTREMES)
        else:
            data[key] = draw.choice((*EXTREMES, set(), b"bytes", 1j, np.arange(3).astype("M8[s]")))
    return pickle.dumps(data, draw.randrange(2, 6))
