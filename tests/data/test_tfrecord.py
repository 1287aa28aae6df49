import contextlib
import pickle
import random
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from mcr.data.tf_example import encode_example
from mcr.data.tfrecord import BadRecord, Record, read_records, write_records


@pytest.fixture
def shard(tmp_path) -> Path:
    """Three records of 100, 0 and 50 bytes."""
    path = tmp_path / "x.tfrecord"
    write_records(path, [b"a" * 100, b"", b"c" * 50])
    return path


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_crc_is_the_standard_one_masked_as_tensorflow_does(tmp_path):
    write_records(tmp_path / "x", [b"123456789"])
    data = (tmp_path / "x").read_bytes()
    crc = 0xE3069283  # the check value of CRC-32C in every catalogue
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    assert google_crc32c.value(b"123456789") == crc
    assert data[:8] == struct.pack("<Q", 9)
    assert data[-4:] == struct.pack("<I", masked)


def test_writing_what_was_read_gives_tensorflows_file(reference, tmp_path):
    for shard in reference.glob("*tfrecord*"):
        write_records(tmp_path / "copy", [record.payload for record in read_records(shard)])
        assert (tmp_path / "copy").read_bytes() == shard.read_bytes()


def test_offsets_point_at_the_payloads(shard):
    data = shard.read_bytes()
    for record in read_records(shard):
        assert data[record.offset : record.offset + len(record.payload)] == record.payload
        assert not record.problem


def test_a_damaged_payload_costs_one_record(shard):
    flip(shard, 12 + 50)
    first, *rest = read_records(shard)
    assert first.payload is None and "CRC" in first.problem and first.offset == 12
    assert [record.payload for record in rest] == [b"", b"c" * 50]
    assert next(read_records(shard, check_crc=False)).payload is not None


def test_a_damaged_length_costs_the_rest_of_the_shard(shard):
    flip(shard, 116 + 1)
    first, second = read_records(shard)
    assert first.payload == b"a" * 100
    assert second.payload is None and "length" in second.problem and second.offset == 116


@pytest.mark.parametrize("size", [117, 127, 128, 131, 133, 150, 197])
def test_a_truncated_shard_ends_with_one_damaged_record(shard, size):
    shard.write_bytes(shard.read_bytes()[:size])
    *whole, last = read_records(shard)
    assert [r.payload for r in whole] == [b"a" * 100, b""][: 1 if size < 132 else 2]
    assert last.payload is None and "truncated" in last.problem


def test_a_kill_while_writing_leaves_no_shard(tmp_path):
    def payloads():
        yield b"first"
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_records(tmp_path / "x", payloads())
    assert not (tmp_path / "x").exists()


def test_damaged_examples_raise_only_bad_record(tmp_path):
    payload = encode_example({"a": [b"x" * 200, b"y"], "b": np.arange(50), "c": np.ones(9)})
    draw = random.Random(0)
    raised = 0
    for _ in range(3000):
        data = bytearray(payload)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        data = data[: draw.choice([len(data), draw.randrange(len(data))])]
        try:
            example = Record(tmp_path, 7, bytes(data)).example()
            for feature in example.values():
                for read in (feature.byte_strings, feature.floats, feature.ints):
                    with contextlib.suppress(ValueError, IndexError):  # see Layout.parse
                        read()
        except BadRecord as error:
            assert error.offset == 7 and str(tmp_path) in str(error)
            raised += 1
    assert raised > 500


def test_bad_record_crosses_process_borders(tmp_path):
    error = pickle.loads(pickle.dumps(BadRecord(tmp_path / "x", 3, "why")))
    assert (error.path, error.offset, error.reason) == (tmp_path / "x", 3, "why")
    with pytest.raises(BadRecord, match="at byte 3: lost"):
        Record(tmp_path, 3, None, "lost").example()
