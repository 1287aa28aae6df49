"""Pickles as plain data: what they may hold, and that no other can harm the process."""

import io
import pickle
import pickletools
import resource
import struct
import time

import numpy as np
import pytest

from mcr.data import safe_pickle
from mcr.errors import UserError

LIMIT = 2**28  # bytes that reading a small pickle may add to the process


def load(raw: bytes):
    """Load a pickle in bounded memory."""
    data = next(x for x in open("/proc/self/status") if x.startswith("VmData:"))  # noqa: SIM115
    previous = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(data.split()[1]) * 1024 + LIMIT, previous[1]))
    try:
        return safe_pickle.load(raw)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, previous)


VALUES = {
    "float64": np.arange(6.0),
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.arange(3, dtype=np.float16),
    "big endian": np.arange(3, dtype=">i4"),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(10)[::3],
    "empty": np.zeros((0, 7)),
    "scalar array": np.array(3.0),
    "flags": np.array([True, False]),
    "texts": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "numpy numbers": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("x")],
    "numbers": [0, 255, 256, -1, 2**40, -(2**70), 1.5, float("inf"), True, None],
    "text": ["", "plain", "ümlaut", "x" * 300, "x" * 70_000],
    "raw": [b"", b"abc", b"x" * 300],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "dicts": [{}, {"a": {"b": [1]}}],
    "shared": [[0.0] * 7] * 40,
}


def is_equal(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(is_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("optimised", [False, True])
def test_plain_values_of_all_protocols_are_read_bit_for_bit(protocol, optimised):
    raw = pickle.dumps(VALUES, protocol)
    raw = pickletools.optimize(raw) if optimised else raw
    for name, value in load(raw).items():
        assert is_equal(VALUES[name], value), name
    if protocol < 4:  # later ones state the length of the name
        assert is_equal(VALUES, load(raw.replace(b"numpy._core", b"numpy.core")))


def forged_dtype(flags: int) -> bytes:
    """`numpy.dtype("O")` by way of a forged state, applied to bytes: the old memory corruption."""
    state = b"(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    dtype = b"cnumpy\ndtype\n(\x8c\x02O8\x89\x88tR" + state
    return (
        b"\x80\x04}\x8c\x06action" + b"cnumpy\nfrombuffer\n(C\x10AAAAAAAABBBBBBBB" + dtype + b"tRs."
    )


def call(module: str, name: str, arguments: bytes, state: bytes = b"") -> bytes:
    function = f"c{module}\n{name}\n".encode()
    return (
        b"\x80\x04" + function + b"(" + arguments + b"tR" + (state + b"b" if state else b"") + b"."
    )


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (forged_dtype(0), "the NumPy type 'O8'"),
        (forged_dtype(63), "the NumPy type 'O8'"),
        (call("numpy", "dtype", b"\x8c\x0bV2000000000\x89\x88"), "'V2000000000'"),
        (
            call("numpy", "dtype", b"\x8c\x02f8\x89\x88", b"(K\x03\x8c\x01<NN}K\x08K\x08K\x3ft"),
            "stru",
        ),
        (call("numpy", "ndarray", b"(K\x05t"), "refuses to call numpy.ndarray"),
        (call("os", "system", b"\x8c\x04true"), "refuses to load os.system"),
        (b"\x80\x04cnumpy\nfrombuffer\n}\x8c\x0c__defaults__Nsb.", "set the state of a"),
        (b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93)}\x92.", "the instruction b'\\\\x92'"),
        (pickle.dumps({"a": {1, 2}}), "the instruction"),
        (pickle.dumps({k * (2**61 - 1): 0 for k in range(5)}), "which is no text"),
    ],
)
def test_what_is_no_plain_data_is_refused_in_a_sentence(raw, sentence):
    with pytest.raises(UserError, match=sentence):
        load(raw)


def billions(levels: int, width: int = 10) -> list:
    value: list = [1.0]
    for _ in range(levels):
        value = [value] * width
    return value


def endless() -> list:
    value: list = []
    value.extend([value, value])
    return value


def nested(levels: int) -> bytes:
    return b"\x80\x04" + b"]" * levels + b"a" * (levels - 1) + b"."


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x04]r\xff\xff\xff\x7f0N.",  # an index of the memo
        b"\x80\x04]p99999999999999999999\n0N.",
        b"\x80\x04B\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x04\x8b\xff\xff\xff\x7f.",
        call("numpy", "frombuffer", b"C\x08AAAAAAAA\x8c\x08U9999999"),
        call(
            "numpy.core.numeric",
            "_frombuffer",
            b"C\x00\x8c\x02f8J\xff\xff\xff\x7fK\x00\x86\x8c\x01C",
        ),
        pickle.dumps(billions(12)),
        pickle.dumps(endless()),
        nested(1000),
        nested(10**5),
        b"\x80\x04" + b"(" * 10**5 + b".",
    ],
    ids=range(13),
)
def test_a_bomb_ends_quickly_in_an_error(raw):
    begin = time.process_time()
    with pytest.raises(Exception) as caught:
        load(raw)
    assert not isinstance(caught.value, MemoryError | RecursionError), caught.value
    assert time.process_time() - begin < 10


def test_nothing_of_a_pickle_changes_the_next_one():
    """The functions that stand for NumPy's have no state that a pickle could set."""
    expected = pickle.dumps([np.arange(3.0)])
    for raw in (
        b"\x80\x04cnumpy\nfrombuffer\n(N}\x8c\x08__code__Nstb.",
        b"\x80\x04cnumpy\ndtype\n(N}\x8c\x08__init__Nstb.",
    ):
        with pytest.raises(UserError, match="set the state"):
            load(raw)
        assert is_equal([np.arange(3.0)], load(expected))


def test_arrays_of_a_pickle_that_was_written_out_of_band_are_refused():
    buffers: list = []
    raw = pickle.dumps(np.arange(3.0), 5, buffer_callback=buffers.append)
    with pytest.raises(UserError, match="refuses the instruction"):
        load(raw)


def test_what_follows_the_end_is_ignored_as_python_does():
    raw = pickle.dumps([1]) + b"more"
    assert load(raw) == pickle.load(io.BytesIO(raw)) == [1]
