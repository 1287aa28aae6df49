import io
import os
import pickle
import random

import numpy as np
import pytest

from mcr.data.other_data import OTHER_DATA, other_data, read_other_data
from mcr.errors import UserError


def read_bytes(tmp_path, raw: bytes):
    (tmp_path / OTHER_DATA).write_bytes(raw)
    return read_other_data(tmp_path / OTHER_DATA)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_upstreams_pickles_are_read(tmp_path, episode, protocol):
    """Plain pickles of NumPy values are read in any protocol."""
    data = other_data(episode.signals, episode.origin) | {
        "discount": [np.float32(1.0)] * 41,
        "is_first": [np.True_] * 41,
    }
    raw = pickle.dumps(data, protocol)
    read = read_bytes(tmp_path, raw)
    np.testing.assert_array_equal(read["action"], data["action"])
    assert read["is_first"] == data["is_first"] and read["discount"] == data["discount"]


def test_pickles_of_numpy_1_are_read(tmp_path, episode):
    raw = pickle.dumps({"action": list(episode.signals["action"]), "flag": np.True_}, 2)
    assert b"numpy._core" in raw
    read = read_bytes(tmp_path, raw.replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(read["action"], episode.signals["action"])


class Call:
    """An object that is pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.reduction = function, arguments

    def __reduce__(self):
        return self.reduction


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "call",
    [
        lambda path: Call(os.system, f"touch {path}"),
        lambda path: Call(exec, f"open({str(path)!r}, 'w')"),
        lambda path: Call(open, str(path), "w"),
        lambda path: Call(np.savetxt, str(path), [1]),
        lambda path: Call(getattr, "text", "encode"),
        lambda path: Call(io.FileIO, str(path), "w"),
    ],
)
def test_a_malicious_pickle_executes_nothing(tmp_path, call, protocol):
    victim = tmp_path / "victim"
    raw = pickle.dumps({"action": [call(victim)]}, protocol)
    with pytest.raises(UserError, match="nothing was executed"):
        read_bytes(tmp_path, raw)
    assert not victim.exists()


def test_dotted_names_are_refused(tmp_path):
    """Protocol 4 resolves `ndarray.__class__...` attribute by attribute."""
    raw = b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    with pytest.raises(UserError, match="refuses to load"):
        read_bytes(tmp_path, raw)


def test_a_damaged_pickle_is_named(tmp_path, episode):
    raw = pickle.dumps(other_data(episode.signals, episode.origin))
    for size in (0, 1, 100, len(raw) // 2, len(raw) - 1):
        with pytest.raises(UserError, match=f"{OTHER_DATA}: damaged pickle"):
            read_bytes(tmp_path, raw[:size])
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[draw.randrange(len(raw))] = draw.randrange(256)
        try:
            read_bytes(tmp_path, bytes(damaged))
        except UserError as error:
            assert str(tmp_path) in str(error)
    with pytest.raises(UserError, match="holds a list"):
        read_bytes(tmp_path, pickle.dumps([1]))
    with pytest.raises(FileNotFoundError):
        read_other_data(tmp_path / "nowhere.pkl")
