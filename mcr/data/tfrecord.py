"""TFRecord files: records with checksums, one after the other. No TensorFlow is needed.

    record: u64 length | u32 masked CRC-32C of length | payload | u32 masked CRC-32C of payload

Reading walks over the records, checks their CRCs and copies nothing but the payload. Writing exists
for the sample data set and the tests. `tf_example.py` decodes payloads.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from mcr.data.tf_example import Feature, parse_example
from mcr.errors import UserError
from mcr.runs.atomic import atomic_path

_HEADER = struct.Struct("<QI")  # length, masked CRC of length
_FOOTER = struct.Struct("<I")  # masked CRC of payload


class BadRecord(UserError):
    """One record of a shard cannot be used. The message names shard, byte offset and reason."""

    def __init__(self, path: Path, offset: int, reason: str):
        super().__init__(f"{path} at byte {offset}: {reason}")
        self.path, self.offset, self.reason = path, offset, reason

    def __reduce__(self):  # crosses process borders
        return (BadRecord, (self.path, self.offset, self.reason))


@dataclass(frozen=True)
class Record:
    """One record of a shard.

    offset:  first byte of its payload in the file
    payload: None if the record is damaged
    problem: why there is no payload
    """

    path: Path
    offset: int
    payload: bytes | None
    problem: str = ""

    def example(self) -> dict[str, Feature]:
        """Return the features by key, without decoding them. Raises BadRecord."""
        if self.payload is None:
            raise BadRecord(self.path, self.offset, self.problem)
        try:
            return parse_example(self.payload)
        except (IndexError, MemoryError, ValueError) as error:
            raise BadRecord(self.path, self.offset, f"not a tf.train.Example: {error}") from error


def read_records(path: str | Path, check_crc: bool = True) -> Iterator[Record]:
    """Yield every record of a shard in file order, with damaged ones (see `Record.problem`).

    A wrong checksum of a payload costs one record. A wrong checksum of a length, or a truncated
    file, costs the rest of the shard because nothing tells where the next record begins. One last
    damaged record stands for the rest.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position < size:
            header = file.read(_HEADER.size)
            start = position + _HEADER.size
            if len(header) < _HEADER.size:
                yield Record(path, position, None, "truncated: the file ends inside a header")
                return
            length, length_crc = _HEADER.unpack(header)
            if _masked_crc(header[:8]) != length_crc:
                yield Record(path, position, None, "bad CRC of a record length: rest of shard lost")
                return
            if start + length + _FOOTER.size > size:
                yield Record(path, start, None, "truncated: the file ends inside this record")
                return
            yield _read_payload(file, length, Record(path, start, None), check_crc)
            position = start + length + _FOOTER.size


def _read_payload(file: BinaryIO, length: int, record: Record, check_crc: bool) -> Record:
    """Return `record` with its payload.

    This is a function because a local variable of `read_records` would keep the payload alive while
    the next one is read. A long episode is over 100 MB.
    """
    try:
        payload = file.read(length)
    except MemoryError:
        file.seek(record.offset + length + _FOOTER.size)
        return replace(record, problem=f"a record of {length:,} bytes, more than memory can hold")
    (payload_crc,) = _FOOTER.unpack(file.read(_FOOTER.size))
    if check_crc and _masked_crc(payload) != payload_crc:
        return replace(record, problem="bad CRC: the record's bytes are damaged")
    return replace(record, payload=payload)


def payload_ranges(buffer: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each record's payload, up to the first whose place is not certain.

    This reads the lengths and their checksums, and no payload.
    """
    position = 0
    while position + _HEADER.size <= len(buffer):
        length, length_crc = _HEADER.unpack_from(buffer, position)
        start = position + _HEADER.size
        is_damaged = _masked_crc(buffer[position : position + 8]) != length_crc
        if is_damaged or start + length > len(buffer):  # as in a file of holes, which are zeros
            return
        yield start, start + length
        position = start + length + _FOOTER.size


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_records(path: str | Path, payloads: Iterable[bytes]) -> int:
    """Write a shard atomically. Return its size in bytes."""
    path = Path(path)
    with atomic_path(path) as partial, partial.open("wb") as file:
        for payload in payloads:
            header = struct.pack("<Q", len(payload))
            file.write(header + _FOOTER.pack(_masked_crc(header)))
            file.write(payload)
            file.write(_FOOTER.pack(_masked_crc(payload)))
    return path.stat().st_size
