"""Ranges: the values that an option may have, declared beside its field.

    @dataclass
    class OptimizerConfig:
        lr: Annotated[float, number(above=0)] = 1e-4
        kind: Annotated[str, choice(KINDS)] = "adam"

        def __post_init__(self) -> None:
            check_fields(self, "optimizer.")

A range may also be the `type` of an option of `argparse`. A field of the type bool, or one that is
a dataclass itself, needs no declaration. `tests/test_ranges.py` tries every field of every config
with the values of `outside`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mcr.errors import UserError, nearest


@dataclass(frozen=True)
class Range:
    """The values that an option may have.

    allowed: says so, as in "lr=-1 must be {allowed}"
    holds:   whether a value is in the range
    outside: values that are not, for tests
    parse:   makes a value of a command line's text
    names:   of these, messages name the one that is nearest to a wrong value
    """

    allowed: str
    holds: Callable[[Any], bool]
    outside: tuple[Any, ...] = ()
    parse: Callable[[str], Any] = str
    names: tuple[str, ...] = ()

    def require(self, option: str, value: Any) -> None:
        """Raise UserError, with the name of the option, unless the value is in the range."""
        if not self.holds(value):
            raise UserError(self.complaint(option, value))

    def complaint(self, option: str, value: Any) -> str:
        """Say that the value of this option is not in the range."""
        return f"{option}={self._complain(value)}"

    def __call__(self, text: str) -> Any:
        """Return the value that a command line's text stands for; `argparse` calls this."""
        try:
            value = self.parse(text)
        except ValueError:
            value = text
        if not self.holds(value):
            raise argparse.ArgumentTypeError(self._complain(value))
        return value

    def _complain(self, value: Any) -> str:
        shown = str(value) if isinstance(value, Path | Real) else repr(value)
        if self.names and isinstance(value, str):
            return f"{shown} is unknown{nearest(value, self.names)}"
        return f"{shown} must be {self.allowed}"


# --------------------------------------------------------------------------- kinds of ranges


def whole(least: int, most: int | None = None, note: str = "") -> Range:
    """Whole numbers from `least` to `most`. The note follows in messages, after a semicolon."""
    limit = f" and at most {most}" if most is not None else ""

    def holds(value: Any) -> bool:
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        return is_whole and least <= value and (most is None or value <= most)

    outside = (least - 1, "many", 1.5, *([] if most is None else [most + 1]))
    return Range(f"a whole number of at least {least}{limit}{_note(note)}", holds, outside, int)


def number(
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    note: str = "",
) -> Range:
    """Finite numbers that are at least `least`, or above `above`, and at most `most`, or below."""
    limits = {"of at least": least, "above": above, "at most": most, "below": below}
    words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)

    def holds(value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        value = float(value)
        low = (least is None or value >= least) and (above is None or value > above)
        return low and (most is None or value <= most) and (below is None or value < below)

    edges = [edge for edge in (above, below) if edge is not None]
    beyond = [least - 1] if least is not None else []
    beyond += [most + 1] if most is not None else []
    outside = (math.nan, math.inf, -math.inf, "much", *edges, *beyond)
    return Range(f"a finite number {words}{_note(note)}".rstrip(), holds, outside, float)


def choice(names: Iterable[str], note: str = "") -> Range:
    """One of these names."""
    names = tuple(names)
    allowed = f"one of {', '.join(map(repr, names))}{_note(note)}"
    return Range(allowed, lambda value: value in names, ("no such name", 7), names=names)


def each(items: Range, count: int | None = None, ordered: bool = False) -> Range:
    """A list of values that lie in the range `items`: `count` of them, in ascending order."""

    def holds(values: Any) -> bool:
        is_list = isinstance(values, list | tuple) and count in (None, len(values))
        return (
            is_list
            and all(map(items.holds, values))
            and (not ordered or [*values] == sorted(values))
        )

    wrong = [[value] * (count or 1) for value in items.outside]
    outside: list[Any] = [*wrong, 7] + ([[]] if count else [])
    many = "a list" if count is None else f"a list of {count} values"
    order = ", in ascending order" if ordered else ""
    return Range(f"{many}, each {items.allowed}{order}", holds, tuple(outside))


def named(names: Iterable[str], values: Range) -> Range:
    """A mapping from some of these names to values in the range `values`."""
    names = tuple(names)

    def holds(mapping: Any) -> bool:
        return isinstance(mapping, Mapping) and all(
            name in names and values.holds(value) for name, value in mapping.items()
        )

    outside = ({names[0]: values.outside[0]}, {"no such name": 1}, 7)
    allowed = f"a mapping of names ({', '.join(names)}) to values that are each {values.allowed}"
    return Range(allowed, holds, outside, names=names)


def optional(values: Range) -> Range:
    """A value in the range `values`, or an empty text."""
    outside = tuple(value for value in values.outside if value != "")
    return replace(
        values,
        allowed=f"{values.allowed}, or empty",
        holds=lambda value: value == "" or values.holds(value),
        outside=outside,
    )


def text(pattern: str, allowed: str) -> Range:
    """Texts that match a regular expression from their beginning to their end."""

    def holds(value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None

    return Range(allowed, holds, (7, "\0"))


def _note(note: str) -> str:
    return f"; {note}" if note else ""


def _exists(value: Any) -> bool:
    try:
        return str(value) != "" and Path(value).expanduser().exists()
    except (OSError, ValueError):  # a name that is too long, or that holds a null character
        return False


def _may_be_written(value: Any, is_folder: bool) -> bool:
    """Whether `value` is a folder (or a file) that may be written to, or may become one."""
    try:
        path = Path(value).expanduser().absolute()
        nearest = next(place for place in (path, *path.parents) if place.exists())
    except (OSError, ValueError):
        return False
    if not str(value) or (nearest == path and path.is_dir() != is_folder):
        return False
    return (nearest.is_dir() or nearest == path) and os.access(nearest, os.W_OK)


# Any text at all: names that only the data, the encoder or the simulator know, and paths that are
# checked where they are opened.
BOOL = Range("true or false", lambda value: isinstance(value, bool), (7, "maybe"))
ANY_TEXT = text(r"[^\0]*", "a text")
NAME = text(r"[^\0]+", "a text that is not empty")
NAMES = each(NAME)
MAPPING = Range(  # from names that are free; the code that reads it checks what it holds
    "a mapping of names to options", lambda value: isinstance(value, Mapping), (7, [1])
)
_DEVICES = r"(cpu|mps|(cuda|xpu)(:\d{1,3})?)"
DEVICE = text(_DEVICES, "a device: cpu, cuda, cuda:1, ... or mps")
DEVICE_OR_AUTO = text(f"auto|{_DEVICES}", "a device: auto, cpu, cuda, cuda:1, ... or mps")
SEED = whole(0, 2**63 - 1)
COUNT = whole(1)
PIXELS = whole(1, 4096)
WORKERS = whole(1, 1024)
WORKERS_OR_ALL = whole(0, 1024, "0 is the default")
EXISTING = Range("a file or folder that exists", _exists, ("/no/such/file",), parse=Path)
FOLDER_TO_WRITE = Range(
    "a folder, or the name of a new one, that you may write to",
    lambda value: _may_be_written(value, is_folder=True),
    (__file__, f"{__file__}/below"),
    parse=Path,
)
FILE_TO_WRITE = Range(
    "the name of a file that you may write to",
    lambda value: _may_be_written(value, is_folder=False),
    (str(Path(__file__).parent), f"{__file__}/below"),
    parse=Path,
)


# --------------------------------------------------------------------------- dataclasses


def ranges_of(config_class: type, prefix: str = "") -> dict[str, Range]:
    """Return {name of a field: its range}, with `prefix` before the names.

    The fields of nested dataclasses are included, as "sampling.alpha".
    """
    hints = get_type_hints(config_class, include_extras=True)
    ranges: dict[str, Range] = {}
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            ranges |= ranges_of(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        if hint is bool:
            ranges[prefix + field.name] = BOOL
        for declared in get_args(hint)[1:]:
            if isinstance(declared, Range):
                ranges[prefix + field.name] = declared
    return ranges


def check_fields(config: Any, prefix: str = "") -> None:
    """Raise UserError for a field of a dataclass that is out of its range.

    prefix: what messages put before the field's name, such as "data.sampling."
    """
    for name, allowed in ranges_of(type(config)).items():
        if "." not in name:  # nested dataclasses have checked their own fields
            allowed.require(prefix + name, getattr(config, name))
