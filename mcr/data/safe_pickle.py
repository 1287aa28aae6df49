"""Reads a pickle as plain data: numbers, texts, NumPy arrays, lists, tuples and dicts.

A pickle is a program. This module does not give it to Python's `pickle`, which would run it. It has
an interpreter of its own for the instructions that plain data needs, in all protocols (0 to 5). An
instruction that calls something finds only the few functions below, which stand for NumPy's and
check their arguments: a type is a text such as "<f4", an array has a shape and exactly the bytes
for it. NumPy itself rebuilds nothing, because the states that its own functions accept can be
forged so that a later access follows them to any address.

No size that the file states is allocated before it is checked. What is returned has at most
`_MAX_DEPTH` levels and `_MAX_VALUES` values, counted as often as they are referred to, so code that
walks over it or stacks it needs bounded time and memory.
"""

from __future__ import annotations

import functools
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from mcr.errors import UserError

_MAX_INSTRUCTIONS = 2**23  # an array of `other_data.py` takes 8, NumPy's own pickles take 20
_MAX_DEPTH = 16
_MAX_VALUES = 2**25  # 33 million numbers: 5,000 steps of 6,700
_MAX_DIMENSIONS = 8
_MAX_INTEGER_BYTES = 1024
_TYPE = re.compile(r"([<>|=]?)(b1|\?|[iu][1248]|f2|f4|f8|f16|[SU]\d{1,6}|[bhilqBHILQefdg])")
_ORDERS = ("<", ">", "|", "=")


def load(data: bytes) -> Any:
    """Return what a pickle holds.

    Arrays are read-only. Raises UserError that says what a pickle calls which is no plain data, and
    other exceptions, nearly any, if it is damaged. Nothing of it is ever executed.
    """
    value = _Machine(data).run()
    _measure(value, 0, {})
    return value


# --------------------------------------------------------------------------- what a pickle may call


@functools.lru_cache(64)
def _dtype(code: Any) -> np.dtype:
    if not isinstance(code, str) or not _TYPE.fullmatch(code):
        raise UserError(
            f"refuses to load values of the NumPy type {_shown(code)}: only numbers, flags and "
            "texts are admitted; nothing was executed"
        )
    return np.dtype(code)


class _Type:
    """Stands for a `numpy.dtype`, of which a pickle first says the code and then the byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        self.dtype = _dtype(code)

    def build(self, state: Any) -> _Type:
        """Take the byte order from (version, order, subtype, names, fields, ...)."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in _ORDERS:
            raise UserError("refuses to load a NumPy type of a forged state; nothing was executed")
        if state[2:5] != (None, None, None):
            raise UserError("refuses to load a structured NumPy type; nothing was executed")
        self.dtype = self.dtype.newbyteorder(state[1])
        return self


class _Unfilled:
    """Stands for an array of which a pickle has not yet said what is in it."""

    def __init__(self, subtype: Any = None, shape: Any = (0,), code: Any = b"b"):
        self.place: int | None = None  # in the memo

    def build(self, state: Any) -> np.ndarray:
        """Take (version, shape, type, is it in Fortran's order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array has a state of another form")
        _, shape, kind, is_fortran, content = state
        return _array(content, kind, shape, "F" if is_fortran else "C")


def _array(
    content: Any, kind: Any, shape: Any = None, order: Any = "C", axes: Any = None
) -> np.ndarray:
    """Return an array of the bytes `content`, which must be exactly those of its shape.

    kind:  a `_Type`, or its code
    shape: None = one dimension
    axes:  how NumPy transposes an array that was stored in another order of its axes
    """
    dtype = kind.dtype if isinstance(kind, _Type) else _dtype(kind)
    if not isinstance(content, bytes | bytearray):
        raise UserError(f"refuses to load an array of {type(content).__name__} as its bytes")
    if dtype.itemsize == 0 or len(content) % dtype.itemsize:
        raise ValueError(f"an array of {dtype} has {len(content)} bytes")
    array = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    if dtype.kind == "U":
        array.tolist()  # raises ValueError for what is no Unicode
    if shape is None:
        return array
    if not _is_shape(shape, array.size):
        raise ValueError(f"an array of {array.size} numbers states the shape {_shown(shape)}")
    array = array.reshape(shape, order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)


def _is_shape(shape: Any, size: int) -> bool:
    return (
        isinstance(shape, tuple)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n <= _MAX_VALUES for n in shape)
        and math.prod(shape) == size
    )


def _frombuffer(content: Any, kind: Any = "<f8", *further: Any) -> np.ndarray:
    return _array(content, kind, *further)


def _scalar(kind: Any, content: Any = None) -> Any:
    if isinstance(kind, _Type) and kind.dtype.itemsize == 0 and content == b"":
        return kind.dtype.type()  # an empty text
    (value,) = _array(content, kind)
    return value


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 and earlier ones store bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes are stored in another form than latin1")
    return text.encode("latin1")


def _bytes(*arguments: Any) -> bytes:
    """How protocol 2 and earlier ones store bytes if there are none."""
    if arguments:
        raise ValueError("bytes are made of something")
    return b""


def _ndarray(*arguments: Any) -> Any:
    raise UserError("refuses to call numpy.ndarray; nothing was executed")


_REBUILT: list[tuple[str, str, Callable[..., Any]]] = [
    ("multiarray", "_reconstruct", _Unfilled),
    ("multiarray", "scalar", _scalar),
    ("numeric", "_frombuffer", _frombuffer),
]
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _ndarray,  # only named, as an argument of _reconstruct
    ("numpy", "dtype"): _Type,
    ("numpy", "frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytes"): _bytes,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")  # NumPy 1, NumPy 2
        for module, name, function in _REBUILT
    },
}


def _find(module: Any, name: Any) -> Callable[..., Any]:
    function = _FUNCTIONS.get((module, name))
    if function is None:
        raise UserError(
            f"refuses to load {module}.{name}: only NumPy arrays and builtin containers are "
            "admitted, so this is no episode of a robot data set; nothing was executed"
        )
    return function


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


# --------------------------------------------------------------------------- the interpreter


class _Machine:
    """A pickle that is being read: its bytes, and the values that it has made so far."""

    def __init__(self, data: bytes):
        self._data = data
        self._position = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # stacks below the marks
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        data = self._data
        for _ in range(_MAX_INSTRUCTIONS):
            code = data[self._position]
            self._position += 1
            if code == _STOP:
                return self._result()
            action = _ACTIONS.get(code)
            if action is None:
                raise UserError(
                    f"refuses the instruction {bytes([code])!r}, which no plain data needs; "
                    "nothing was executed"
                )
            action(self)
        raise UserError(f"has over {_MAX_INSTRUCTIONS:,} instructions")

    def _result(self) -> Any:
        (value,) = self._stack
        if self._marked:
            raise ValueError("it ends inside a list")
        return value

    # --- bytes of the file

    def _take(self, size: int) -> bytes:
        begin, end = self._position, self._position + size
        if end > len(self._data):
            raise EOFError("it is cut off")
        self._position = end
        return self._data[begin:end]

    def _number(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self._data, self._position)
        self._position += form.size
        return value

    def _line(self) -> str:
        end = self._data.index(b"\n", self._position)
        line = self._data[self._position : end]
        self._position = end + 1
        return line.decode("ascii")

    # --- values

    def push_number(self, form: struct.Struct) -> None:
        self._stack.append(self._number(form))

    def push_byte(self) -> None:
        self._stack.append(self._data[self._position])
        self._position += 1

    def push_bytes(self, form: struct.Struct) -> None:
        self._stack.append(self._take(self._number(form)))

    def push_short_bytes(self) -> None:
        begin = self._position + 1
        end = self._position = begin + self._data[begin - 1]
        if end > len(self._data):
            raise EOFError("it is cut off")
        self._stack.append(self._data[begin:end])

    def push_text(self, form: struct.Struct) -> None:
        self._stack.append(str(self._take(self._number(form)), "utf-8", "backslashreplace"))

    def push_ascii(self, form: struct.Struct) -> None:
        self._stack.append(str(self._take(self._number(form)), "ascii"))

    def push_long(self, form: struct.Struct) -> None:
        size = self._number(form)
        if not 0 <= size <= _MAX_INTEGER_BYTES:
            raise ValueError(f"an integer of {size} bytes")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def push_integer_line(self) -> None:
        line = self._line()
        if len(line) > 2 * _MAX_INTEGER_BYTES:
            raise ValueError(f"an integer of {len(line)} digits")
        flags = {"00": False, "01": True}  # of protocol 0
        self._stack.append(flags[line] if line in flags else int(line.rstrip("L")))

    def push_float_line(self) -> None:
        self._stack.append(float(self._line()))

    def push_text_line(self) -> None:
        end = self._data.index(b"\n", self._position)
        line = self._data[self._position : end]
        self._position = end + 1
        text = str(line, "raw-unicode-escape")
        self._stack.append(str(text.encode("utf-8", "backslashreplace"), "utf-8"))

    def push(self, value: Any) -> None:
        self._stack.append(value)

    # --- containers

    def mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def make_tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError("a tuple has too few items")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def make_pair(self) -> None:
        second = self._stack.pop()
        self._stack[-1] = (self._stack[-1], second)

    def collect_tuple(self) -> None:
        items = tuple(self._since_mark())
        self._stack.append(items)

    def collect_list(self) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def collect_dict(self) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._set(items)

    def append(self) -> None:
        value = self._stack.pop()
        self._extend([value])

    def append_all(self) -> None:
        items = self._since_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError(f"something is appended to a {type(target).__name__}")
        target.extend(items)

    def set_item(self) -> None:
        items = self._stack[-2:]
        del self._stack[-2:]
        self._set(items)

    def set_items(self) -> None:
        items = self._since_mark()
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError(f"items are set in a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only the hashes of texts are random, so that no file can make them collide.
            if type(key) is not str:
                raise UserError(f"refuses a dict with the key {_shown(key)}, which is no text")
            target[key] = value

    # --- memo

    def _remember(self, place: int) -> None:
        value = self._memo[place] = self._stack[-1]
        if type(value) is _Unfilled:
            value.place = place

    def memoize(self) -> None:
        value = self._stack[-1]
        if type(value) is _Unfilled:
            value.place = len(self._memo)
        self._memo[len(self._memo)] = value

    def put(self, form: struct.Struct) -> None:
        self._remember(self._number(form))

    def put_line(self) -> None:
        self._remember(int(self._line()))

    def get_short(self) -> None:
        self._stack.append(self._memo[self._data[self._position]])
        self._position += 1

    def get(self, form: struct.Struct) -> None:
        self._stack.append(self._memo[self._number(form)])

    def get_line(self) -> None:
        self._stack.append(self._memo[int(self._line())])

    # --- calls

    def find_line(self) -> None:
        module, name = self._line(), self._line()
        self._stack.append(_find(module, name))

    def find(self) -> None:
        name = self._stack.pop()
        module = self._stack.pop()
        if type(module) is not str or type(name) is not str:
            raise TypeError("a function has no name")
        self._stack.append(_find(module, name))

    def call(self) -> None:
        arguments = self._stack.pop()
        function = self._stack.pop()
        if function not in _CALLABLE or type(arguments) is not tuple:
            raise TypeError(f"a {type(function).__name__} is called")
        self._stack.append(function(*arguments))

    def build(self) -> None:
        state = self._stack.pop()
        target = self._stack.pop()
        if not isinstance(target, _Type | _Unfilled):
            raise UserError(
                f"refuses to set the state of a {type(target).__name__}; nothing was executed"
            )
        value = target.build(state)
        if isinstance(target, _Unfilled) and target.place is not None:
            self._memo[target.place] = value
        self._stack.append(value)

    def skip(self, form: struct.Struct) -> None:
        self._position += form.size


_CALLABLE = frozenset(_FUNCTIONS.values())
_STOP = pickle.STOP[0]
_U1, _U2, _U4, _U8 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q"))
_I1, _I4, _F8 = struct.Struct("<b"), struct.Struct("<i"), struct.Struct(">d")


def _with(action: Callable[..., None], *arguments: Any) -> Callable[[_Machine], None]:
    return lambda machine: action(machine, *arguments)


_M = _Machine
_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    code[0]: action
    for code, action in {
        pickle.PROTO: _with(_M.skip, _U1),
        pickle.FRAME: _with(_M.skip, _U8),
        pickle.NONE: _with(_M.push, None),
        pickle.NEWTRUE: _with(_M.push, True),
        pickle.NEWFALSE: _with(_M.push, False),
        pickle.INT: _M.push_integer_line,
        pickle.LONG: _M.push_integer_line,
        pickle.BININT: _with(_M.push_number, _I4),
        pickle.BININT1: _M.push_byte,
        pickle.BININT2: _with(_M.push_number, _U2),
        pickle.LONG1: _with(_M.push_long, _U1),
        pickle.LONG4: _with(_M.push_long, _I4),
        pickle.FLOAT: _M.push_float_line,
        pickle.BINFLOAT: _with(_M.push_number, _F8),
        pickle.SHORT_BINBYTES: _M.push_short_bytes,
        pickle.BINBYTES: _with(_M.push_bytes, _U4),
        pickle.BINBYTES8: _with(_M.push_bytes, _U8),
        pickle.BYTEARRAY8: _with(_M.push_bytes, _U8),
        pickle.SHORT_BINSTRING: _with(_M.push_ascii, _U1),
        pickle.BINSTRING: _with(_M.push_ascii, _U4),
        pickle.UNICODE: _M.push_text_line,
        pickle.SHORT_BINUNICODE: _with(_M.push_text, _U1),
        pickle.BINUNICODE: _with(_M.push_text, _U4),
        pickle.BINUNICODE8: _with(_M.push_text, _U8),
        pickle.MARK: _M.mark,
        pickle.EMPTY_TUPLE: _with(_M.push, ()),
        pickle.TUPLE1: _with(_M.make_tuple, 1),
        pickle.TUPLE2: _M.make_pair,
        pickle.TUPLE3: _with(_M.make_tuple, 3),
        pickle.TUPLE: _M.collect_tuple,
        pickle.EMPTY_LIST: lambda machine: machine.push([]),
        pickle.LIST: _M.collect_list,
        pickle.APPEND: _M.append,
        pickle.APPENDS: _M.append_all,
        pickle.EMPTY_DICT: lambda machine: machine.push({}),
        pickle.DICT: _M.collect_dict,
        pickle.SETITEM: _M.set_item,
        pickle.SETITEMS: _M.set_items,
        pickle.MEMOIZE: _M.memoize,
        pickle.PUT: _M.put_line,
        pickle.BINPUT: _with(_M.put, _U1),
        pickle.LONG_BINPUT: _with(_M.put, _U4),
        pickle.GET: _M.get_line,
        pickle.BINGET: _M.get_short,
        pickle.LONG_BINGET: _with(_M.get, _U4),
        pickle.GLOBAL: _M.find_line,
        pickle.STACK_GLOBAL: _M.find,
        pickle.REDUCE: _M.call,
        pickle.BUILD: _M.build,
    }.items()
}


# --------------------------------------------------------------------------- the budget


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values and levels there are, counting what is shared as often as it occurs.

    known: id of a container -> its result

    Raises UserError for more than there may be. A container that holds itself has too many levels.
    """
    if isinstance(value, np.ndarray):
        return value.size, 0
    if not isinstance(value, list | tuple | dict):
        return 1, 0
    if id(value) in known:
        size, levels = known[id(value)]
    else:
        size, levels = 0, 1
        items = value.values() if isinstance(value, dict) else value
        for item in items if depth < _MAX_DEPTH else ():
            item_size, item_levels = _measure(item, depth + 1, known)
            size, levels = size + item_size, max(levels, item_levels + 1)
        known[id(value)] = size, levels
    if size > _MAX_VALUES or depth + levels > _MAX_DEPTH:
        raise UserError(
            f"holds over {_MAX_VALUES:,} values, or more than {_MAX_DEPTH} lists inside each other"
        )
    return size, levels
