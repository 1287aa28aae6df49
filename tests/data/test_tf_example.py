import struct

import numpy as np
import pytest

from mcr.data.tf_example import encode_example, parse_example
from mcr.data.tfrecord import read_records


def test_example_round_trip():
    features = {
        "bytes": [b"", b"\xff" * 300, "größe".encode()],
        "floats": np.array([0.1, -np.inf, 3e38], np.float32),
        "ints": np.array([0, 1, -1, 127, 128, 2**63 - 1, -(2**63)]),
        "flags": np.array([True, False]),
        "none": [],
    }
    parsed = parse_example(encode_example(features))
    assert [bytes(item) for item in parsed["bytes"].byte_strings()] == features["bytes"]
    np.testing.assert_array_equal(parsed["floats"].floats(), features["floats"])
    np.testing.assert_array_equal(parsed["ints"].ints(), features["ints"])
    np.testing.assert_array_equal(parsed["flags"].ints(), [1, 0])
    assert parsed["none"].byte_strings() == []


def test_encoding_what_was_parsed_gives_tensorflows_records(reference, make_features):
    """The records are equal up to the order of features, which TensorFlow leaves open."""
    shard = min(reference.glob("*tfrecord*"))
    payload = next(read_records(shard)).payload
    ours = encode_example(make_features(41, record=0))
    assert len(ours) == len(payload)
    theirs = parse_example(payload)
    for key, feature in parse_example(ours).items():
        other = theirs[key]
        assert ours[feature.start : feature.end] == payload[other.start : other.end], key


def test_unpacked_lists_are_read():
    """Protocol buffers may store repeated numbers one by one, each with its tag."""

    def delimited(field, content):
        return bytes([field << 3 | 2, len(content)]) + content

    floats = delimited(2, b"".join(b"\x0d" + struct.pack("<f", x) for x in (1.5, -2.0)))
    ints = delimited(3, b"\x08\x05\x08\x80\x01")
    entries = [
        delimited(1, delimited(1, key) + delimited(2, value))
        for key, value in ((b"f", floats), (b"i", ints))
    ]
    parsed = parse_example(delimited(1, b"".join(entries)))
    assert parsed["f"].floats().tolist() == [1.5, -2.0]
    assert parsed["i"].ints().tolist() == [5, 128]


def test_the_wrong_kind_of_list_is_an_error():
    feature = parse_example(encode_example({"x": np.array([1.0])}))["x"]
    with pytest.raises(ValueError, match="bytes_list"):
        feature.byte_strings()
    with pytest.raises(ValueError, match="int64_list"):
        feature.ints()
