"""Forged files of weights: their checksums are right, and what they hold is hostile.

`spoil` and `contents` are for torch.save, `archive` is for the zip archives that it writes, and
`header` for safetensors.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks.damages import EXTREMES, change_value, damage_bytes
from attacks.pickles import Call, call, instructions
from mcr.models.layouts import CHECKPOINT_FORMAT

_DATA = "archive/data.pkl"


# --------------------------------------------------------------------------- contents


def spoil(content: dict[str, Any], tensors: dict[str, Tensor], draw: random.Random) -> str:
    """Change a tensor in `tensors`, which `content` holds, or something else in `content`."""
    if "encoder_config" in content and draw.random() < 0.5:
        content["encoder_config"] = dict(content["encoder_config"])
        return change_value({"encoder_config": content["encoder_config"]}, draw)
    if draw.random() < 0.1:
        return change_value(content, draw)
    name = draw.choice([key for key in tensors if "running_var" in key] + list(tensors))
    tensor = tensors[name].clone()
    kind = draw.choice(list(_SPOILT))
    try:
        tensors[name] = _SPOILT[kind](tensor, draw)
    except RuntimeError:  # no such tensor of this type or shape
        tensors[name] = tensor[..., None]
    if draw.random() < 0.1:
        tensors[draw.choice(("x" * 10_000, "a\nb", "\ud800", "", "module.", "fc.weight"))] = tensor
    return f"{name} is {kind}"


def _with_value(value: float) -> Any:
    def change(tensor: Tensor, draw: random.Random) -> Tensor:
        if tensor.is_floating_point():
            tensor.view(-1)[draw.randrange(tensor.numel())] = value
        return tensor

    return change


_SPOILT: dict[str, Any] = {
    "NaN": _with_value(float("nan")),
    "infinite": _with_value(float("inf")),
    "-infinite": _with_value(float("-inf")),
    "huge": _with_value(3e38),
    "-1 somewhere": _with_value(-1.0),
    "negative": lambda tensor, draw: -tensor.abs() - 1,
    "double": lambda tensor, draw: tensor.double() * 1e300,
    "complex": lambda tensor, draw: tensor.to(torch.complex64),
    "bytes": lambda tensor, draw: tensor.to(torch.uint8),
    "bool": lambda tensor, draw: tensor.bool(),
    "half": lambda tensor, draw: tensor.half(),
    "float8": lambda tensor, draw: tensor.to(torch.float8_e4m3fn),
    "sparse": lambda tensor, draw: tensor.to_sparse(),
    "quantized": lambda tensor, draw: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "on the meta device": lambda tensor, draw: tensor.to("meta"),
    "empty": lambda tensor, draw: tensor.flatten()[:0],
    "transposed": lambda tensor, draw: tensor.transpose(0, -1),
    "longer": lambda tensor, draw: torch.cat([tensor, tensor]),
    "expanded": lambda tensor, draw: torch.zeros(1).expand(draw.choice((2**31, 2**40, 2**62))),
    "expanded to its shape": lambda tensor, draw: torch.zeros(()).expand(tensor.shape),
    "a view": lambda tensor, draw: torch.cat([tensor.flatten()] * 2)[1:].as_strided(
        tensor.shape, [1] * tensor.ndim
    ),
    "negated lazily": lambda tensor, draw: torch._neg_view(tensor),
    "a parameter": lambda tensor, draw: torch.nn.Parameter(tensor),
    "a list": lambda tensor, draw: [tensor],
    "a mapping": lambda tensor, draw: {"a": tensor},
    "an extreme": lambda tensor, draw: draw.choice(EXTREMES),
}


def contents(draw: random.Random) -> Any:
    """Return something that is no checkpoint at all."""
    return draw.choice((*_CONTENTS, lambda draw: draw.choice(EXTREMES)))(draw)


def _nested(draw: random.Random) -> Any:
    nested: Any = [torch.zeros(2)]
    for _ in range(draw.choice((10, 200, 900))):
        nested = draw.choice(([nested], {"state_dict": nested}, {"model": nested}))
    return nested


def _doubled(draw: random.Random) -> Any:
    """Return a small file of what would be a trillion tensors if each was looked at."""
    doubled: Any = [torch.zeros(2)]
    for _ in range(40):
        doubled = [doubled, doubled]
    return draw.choice(
        (
            doubled,
            {"model": doubled},
            {"encoder": {"conv1.weight": torch.zeros(1)}, "format": doubled},
            {"encoder": {}, "format": CHECKPOINT_FORMAT, "encoder_config": doubled},
        )
    )


def _many(draw: random.Random) -> Any:
    """Return tensors that are many, or far larger than what is stored of them."""
    shared = torch.zeros(2**16)
    count, tensor = draw.choice(
        (
            (20_000, None),
            (5_000, shared),
            (100, shared.expand(64, -1)),
            (1, shared[:1].expand(2**40)),
        )
    )
    prefix = draw.choice(("", "module.convnet."))
    tensors = {f"{prefix}layer{number}.weight": tensor for number in range(count)}
    if tensor is None:
        tensors = {name: torch.zeros(1) for name in tensors}
    return draw.choice((tensors, {"mcr": tensors}, {"r3m": tensors}, {"state_dict": tensors}))


_CONTENTS: tuple[Any, ...] = (
    _nested,
    _doubled,
    _many,
    lambda draw: {number: torch.zeros(1) for number in range(10)},
    lambda draw: torch.zeros(3),
    lambda draw: torch.Size([2]),
)


# --------------------------------------------------------------------------- zip archives


def archive(sound: bytes, folder: Path, draw: random.Random) -> tuple[str, bytes]:
    """Return an archive as torch.save writes it, with something hostile inside."""
    kind = draw.choice(("call", "instructions", "tensor", "tensor", "deflated", "sizes", "entries"))
    if kind == "call":
        return kind, _zip({_DATA: call(folder, draw), "archive/data/0": bytes(400)})
    if kind == "instructions":
        with zipfile.ZipFile(io.BytesIO(sound)) as old:
            (name,) = (name for name in old.namelist() if name.endswith("/data.pkl"))
            damaged = instructions(old.read(name), draw)
        return kind, _zip({_DATA: damaged, "archive/data/0": bytes(400)})
    if kind == "tensor":
        data = _tensor_pickle(draw)
        data = damage_bytes(data, draw) if draw.random() < 0.3 else data
        return kind, _zip({_DATA: data, "archive/data/0": bytes(400)})
    if kind == "deflated":
        content = {_DATA: _tensor_pickle(draw), "archive/data/0": bytes(2**27)}
        return kind, _zip(content, draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))
    if kind == "sizes":
        return kind, _state_sizes(draw)
    names = ("archive/data/0", "archive/data/1", "../data/0", "/data/0", "archive/constants.pkl")
    entries = {_DATA: _tensor_pickle(draw), "archive/version": draw.choice((b"3\n", b"99999", b""))}
    entries |= {draw.choice(names): bytes(400), "archive/byteorder": draw.choice((b"big", b"x"))}
    if draw.random() < 0.2:
        entries |= {f"archive/data/{number}": b"" for number in range(70_000)}
    return kind, _zip(entries)


def _zip(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=1) as new:
        for name, data in entries.items():
            new.writestr(name, data)
    return buffer.getvalue()


def _state_sizes(draw: random.Random) -> bytes:
    """Return an archive whose directory states other sizes or places than there are."""
    data = bytearray(_zip({_DATA: _tensor_pickle(draw), "archive/data/0": bytes(400)}))
    entry = data.find(b"PK\x01\x02", draw.randrange(len(data) // 2))
    size = draw.choice((0, 1, 2**20, 2**31 - 1, 2**32 - 1))
    place = entry + draw.choice((20, 24, 28, 30, 42))  # sizes, lengths of names, place in the file
    data[place : place + 4] = struct.pack("<I", size)
    return bytes(data)


class _Storage:
    """What a pickle of torch.save calls a storage: its type, entry, device, number of values."""

    def __init__(self, *parts: Any):
        self.parts = ("storage", *parts)


class _Pickler(pickle.Pickler):
    def persistent_id(self, content: Any) -> Any:
        return content.parts if isinstance(content, _Storage) else None


def _tensor_pickle(draw: random.Random) -> bytes:
    """Return a pickle of one tensor whose numbers are absurd, or of an unusual kind."""
    storage = _Storage(
        draw.choice(
            (torch.FloatStorage, torch.FloatStorage, torch.QInt8Storage, torch.BoolStorage)
        ),
        draw.choice(("0", "0", "0", "1", "../0", "", "\ud800")),
        draw.choice(("cpu", "cpu", "cpu", "cuda:0", "meta", "x" * 1000)),
        draw.choice((100, 100, 100, 0, -1, 2**31, 2**60, 2**70, 0.5)),
    )
    offset = draw.choice((0, 0, 0, 99, 101, -1, 2**62, 2**70))
    size = draw.choice(((100,), (10, 10), (2**40,), (2**31, 2**31), (-1,), (), (0,), (2**62, 4), 3))
    stride = draw.choice(((1,), (10, 1), (0,), (0, 0), (-1,), (2**62, 2**62), (), "1"))
    arguments = (storage, offset, size, stride, draw.choice((False, True)), OrderedDict())
    utilities = torch._utils
    tensor: Any = Call(utilities._rebuild_tensor_v2, arguments)
    others = (
        Call(utilities._rebuild_tensor, arguments[:4]),
        Call(utilities._rebuild_parameter, (tensor, True, OrderedDict())),
        Call(utilities._rebuild_parameter, ("text", True, OrderedDict())),
        Call(utilities._rebuild_sparse_tensor, (torch.sparse_coo, (tensor, tensor, (2**40,)))),
        Call(utilities._rebuild_sparse_tensor, (torch.sparse_csr, (tensor,) * 4)),
        Call(utilities._rebuild_meta_tensor_no_storage, (torch.float32, (2**40,), (1,), False)),
        Call(
            utilities._rebuild_qtensor,
            (*arguments[:4], (torch.per_tensor_affine, 0.0, 2**70), False, OrderedDict()),
        ),
        Call(
            utilities._rebuild_wrapper_subclass,
            (torch.Tensor, torch.float32, size, stride) + (0,) * 4,
        ),
        Call(torch.Tensor, (2**40,)),
        Call(torch.Size, ((2**40, -1, "x"),)),
        Call(OrderedDict, (), {"__class__": 1}),
    )
    if draw.random() < 0.5:
        tensor = draw.choice(others)
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump({"conv1.weight": tensor})
    return buffer.getvalue()


# --------------------------------------------------------------------------- safetensors


def header(sound: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Return a file of safetensors with another header."""
    size = struct.unpack("<Q", sound[:8])[0]
    text, data = sound[8 : 8 + size], sound[8 + size :]
    if draw.random() < 0.1:
        size = draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(sound)))
        return f"a header of {size} bytes", struct.pack("<Q", size) + text + data
    if draw.random() < 0.1:
        depth = draw.choice((100, 100_000))
        return "nested", _safetensors(b"[" * depth + b"]" * depth, data)
    entries = json.loads(text)
    if draw.random() < 0.3:
        first, second = draw.sample(sorted(entries), 2)
        entries[first] = entries[second]
        what = f"{first} is {second}"
    elif draw.random() < 0.3:
        name = draw.choice([key for key in entries if key != "__metadata__"])
        entries[name]["dtype"] = draw.choice(("F64", "F16", "BF16", "U8", "BOOL", "C64", "F8_E5M2"))
        what = f"type of {name}"
    else:
        what = change_value(entries, draw)
    return what, _safetensors(json.dumps(entries).encode("utf-8", "surrogatepass"), data)


def _safetensors(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data
