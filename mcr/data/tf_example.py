"""`tf.train.Example` messages: what a record of a TFRecord file holds. No TensorFlow is needed.

    Example: {1: {1 (repeated): {1: key, 2: {1: bytes_list | 2: float_list | 3: int64_list}}}}

The encoded pictures of an episode are slices of its message, and the index points to their bytes.
TensorFlow's parser does not tell where they lie, so this one is our own. What the features of a
data set mean is in `sources/rlds_features.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # protobuf wire types
_BYTES_ITEM = 1 << 3 | _LENGTH_DELIMITED  # tag of an item of a bytes_list


@dataclass(frozen=True)
class Feature:
    """One feature of an Example, a list that is decoded from `buffer[start:end]` on demand."""

    buffer: bytes
    start: int
    end: int

    def byte_ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Return start and length in the buffer of each item of a bytes_list, both int64 [n]."""
        begins: list[int] = []
        lengths: list[int] = []
        for start, end in self._lists(1, "bytes_list"):
            _append_ranges(self.buffer, start, end, begins, lengths)
        return np.array(begins, np.int64), np.array(lengths, np.int64)

    def first_bytes(self) -> memoryview:
        """Return the first item of a bytes_list without copying it; b"" if there is none."""
        for start, end in self._lists(1, "bytes_list"):
            for field, wire, begin, stop in _fields(self.buffer, start, end):
                if (field, wire) != (1, _LENGTH_DELIMITED):
                    raise ValueError(f"field {field} of wire type {wire} in a bytes_list")
                return memoryview(self.buffer)[begin:stop]
        return memoryview(b"")

    def byte_strings(self) -> list[memoryview]:
        """Return the items of a bytes_list without copying them."""
        view = memoryview(self.buffer)
        begins, lengths = self.byte_ranges()
        return [view[b : b + n] for b, n in zip(begins.tolist(), lengths.tolist(), strict=True)]

    def floats(self) -> np.ndarray:
        """Return a float_list as float32 [n], the precision of the file."""
        parts = [
            np.frombuffer(self.buffer, "<f4", (end - begin) // 4, begin)
            for _, _, begin, end in self._items(2, "float_list")
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def ints(self) -> np.ndarray:
        """Return an int64_list as int64 [n]."""
        values: list[int] = []
        for _, wire, begin, end in self._items(3, "int64_list"):
            raw = np.frombuffer(self.buffer, np.uint8, end - begin, begin)
            if wire == _LENGTH_DELIMITED and (raw < 0x80).all():  # bools and small numbers
                values.extend(raw.tolist())
                continue
            while begin < end:
                value, begin = _varint(self.buffer, begin)
                value &= (1 << 64) - 1  # a damaged one may have up to 70 bits
                values.append(value - (1 << 64) if value >> 63 else value)
        return np.array(values, np.int64)

    def _items(self, kind: int, name: str) -> list[tuple[int, int, int, int]]:
        """Return the fields inside the list, if any. Raises ValueError for another kind."""
        inside: list[tuple[int, int, int, int]] = []
        for begin, end in self._lists(kind, name):
            inside.extend(_fields(self.buffer, begin, end))
        return inside

    def _lists(self, kind: int, name: str) -> Iterator[tuple[int, int]]:
        """Yield begin and end of the list. Raises ValueError for another kind."""
        for field, _, begin, end in _fields(self.buffer, self.start, self.end):
            if field != kind:
                raise ValueError(f"expected a {name}")
            yield begin, end


def _append_ranges(
    buffer: bytes, position: int, end: int, begins: list[int], lengths: list[int]
) -> None:
    """Append begin and length of each item of a bytes_list in buffer[position:end].

    An episode has hundreds of frames, so this does the work of `_fields` for one kind of field.
    """
    while position < end:
        tag, length = buffer[position], buffer[position + 1]
        if tag != _BYTES_ITEM:
            raise ValueError(f"field {tag >> 3} of wire type {tag & 7} in a bytes_list")
        position += 2
        if length >= 0x80:
            length, position = _varint(buffer, position - 1)
        begins.append(position)
        lengths.append(length)
        position += length
    if position > end:
        raise ValueError("a field runs over the end of its message")


def parse_example(payload: bytes, start: int = 0, end: int | None = None) -> dict[str, Feature]:
    """Find the features of the `tf.train.Example` in payload[start:end] without decoding them.

    `payload` may be a memory map. Raises ValueError or IndexError if it holds no Example.
    """
    features = {}
    whole = _fields(payload, start, len(payload) if end is None else end)
    for _, _, map_begin, map_end in whole:
        for _, _, entry_begin, entry_end in _fields(payload, map_begin, map_end):
            entry = {f: (b, e) for f, _, b, e in _fields(payload, entry_begin, entry_end)}
            key_begin, key_end = entry.get(1, (0, 0))
            key = bytes(payload[key_begin:key_end]).decode("utf-8")
            features[key] = Feature(payload, *entry.get(2, (0, 0)))
    return features


def _fields(buffer: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, begin and end of its content) of a protobuf message."""
    while position < end:
        tag = buffer[position]  # all field numbers here fit one byte, hence one tag byte
        position += 1
        wire = tag & 7
        if wire == _LENGTH_DELIMITED:
            length = buffer[position]
            position += 1
            if length >= 0x80:
                length, position = _varint(buffer, position - 1)
        elif wire == _FIXED32:
            length = 4
        elif wire == _FIXED64:
            length = 8
        elif wire == _VARINT:
            length = _varint(buffer, position)[1] - position
        else:
            raise ValueError(f"wire type {wire}")
        if tag >= 0x80 or position + length > end:
            raise ValueError("a field runs over the end of its message")
        yield tag >> 3, wire, position, position + length
        position += length


def _varint(buffer: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 10 bytes")


# --------------------------------------------------------------------------- writing


def encode_example(features: Mapping[str, list[bytes] | np.ndarray]) -> bytes:
    """Serialize features as a `tf.train.Example`.

    A list of bytes becomes a bytes_list, a float array a float_list (float32, flattened), an
    integer or bool array an int64_list.
    """
    entries = []
    for key in sorted(features):
        value = _encode_feature(features[key])
        entries.append(_delimited(1, _delimited(1, key.encode()) + _delimited(2, value)))
    return _delimited(1, b"".join(entries))


def _encode_feature(value: list[bytes] | np.ndarray) -> bytes:
    if isinstance(value, list):
        return _delimited(1, b"".join(_delimited(1, item) for item in value))
    flat = np.asarray(value).ravel()
    if flat.dtype.kind == "f":
        return _delimited(2, _delimited(1, flat.astype("<f4").tobytes()))
    if flat.dtype.kind in "biu":
        packed = b"".join(_encode_varint(int(v) & (2**64 - 1)) for v in flat)
        return _delimited(3, _delimited(1, packed))
    raise TypeError(f"a feature cannot hold {flat.dtype}")


def _delimited(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | _LENGTH_DELIMITED]) + _encode_varint(len(content)) + content


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])
