"""Columns of tables, CSV or parquet, as the signals and texts of an episode.

The sources `lerobot.py` and `media.py` read their tables with it. Parquet needs pyarrow (extra
`lerobot`).
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from mcr.data.regular_files import read_bytes
from mcr.errors import import_extra

if TYPE_CHECKING:
    import pyarrow

_BOOKKEEPING = re.compile(r"timestamp|index|\w+_index|next\..*|annotation\..*|")
_NUMBERED = re.compile(r"(.+?)[_.](\d+)")
_PARTS = re.compile(r"(.*\b(?:action|state))[_.](.+)")
_ROWS_PER_READ = 32  # a picture of each may be a megabyte


def is_bookkeeping(key: str) -> bool:
    """Does a column only say where its row belongs, or what comes after it?

    Such columns become signals only if a schema names them.
    """
    return _BOOKKEEPING.fullmatch(key) is not None


def join_columns(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join columns that are the parts of one signal: float32 [T] or [T, D] each.

    `name_0`, `name_1`, ... or `name.0`, `name.1`, ... become `name`, in the order of the numbers.
    All columns that begin with `action_`, `action.`, `state_` or `state.` become `action` and
    `state`, in the order of the table.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, values in columns.items():
        name, suffix = _split(key)
        groups.setdefault(name, {})[suffix] = values
    return {name: _side_by_side(parts) for name, parts in groups.items()}


def joined_name(key: str) -> str:
    """Return the name of the signal that a column belongs to."""
    return _split(key)[0]


def _split(key: str) -> tuple[str, str]:
    """Return the name of the signal and what distinguishes the column; "" if it stands alone."""
    match = _PARTS.fullmatch(key) or _NUMBERED.fullmatch(key)
    return (match[1], match[2]) if match else (key, "")


def _side_by_side(parts: dict[str, np.ndarray]) -> np.ndarray:
    if list(parts) == [""]:
        return parts[""]
    is_numbered = all(suffix.isdigit() for suffix in parts)
    order = sorted(parts, key=int) if is_numbered else list(parts)
    return np.column_stack([parts[suffix] for suffix in order])


def read_table(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a CSV or parquet file.

    Returns the numeric columns, float32 [T] or, if they hold lists, [T, D]; and the first row of
    each text column. Raises ValueError if the file is no readable table.
    """
    if not path.is_file():
        raise ValueError("is no regular file")
    return read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)


# --------------------------------------------------------------------------- CSV


def read_csv(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """See `read_table`."""
    import pandas as pd  # 30 MB and a second, which a worker that reads shards does not need

    try:
        table = pd.read_csv(io.BytesIO(read_bytes(path)))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"is no readable table ({error})") from error
    if table.empty:
        raise ValueError("has no rows")
    numbers, texts = {}, {}
    for key in table.columns:
        column = table[key]
        if str(key).startswith("Unnamed:"):  # the row numbers that pandas writes
            continue
        if pd.api.types.is_numeric_dtype(column.dtype):
            numbers[str(key)] = column.to_numpy(np.float32)
        else:
            texts[str(key)] = "" if pd.isna(column.iloc[0]) else str(column.iloc[0])
    return numbers, texts


# --------------------------------------------------------------------------- parquet


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """See `read_table`."""
    with contextlib.closing(ParquetTable(path)) as file:
        kinds = {name: file.type_of(name) for name in file.names}
        wanted = [name for name, kind in kinds.items() if is_numeric(kind) or is_text(kind)]
        if not file.num_rows:
            raise ValueError("has no rows")
        table = file.read(wanted, 0, file.num_rows)
    numbers, texts = {}, {}
    for name in wanted:
        if is_text(kinds[name]):
            texts[name] = str(table.column(name)[0].as_py() or "")
        else:
            numbers[name] = to_numbers(table.column(name))
    return numbers, texts


class ParquetTable:
    """An open parquet file.

    names:    of its columns
    num_rows: of the file
    """

    def __init__(self, path: Path):
        """Open a file. Raises ValueError if it is no readable parquet file."""
        parquet = import_extra("pyarrow.parquet", "lerobot")
        if not path.is_file():
            raise ValueError("no such file" if not path.exists() else "is no regular file")
        with _readable():
            self._file = parquet.ParquetFile(path)
        self.names: list[str] = self._file.schema_arrow.names
        metadata = self._file.metadata
        self.num_rows: int = metadata.num_rows
        groups = range(metadata.num_row_groups)
        self._ends = np.cumsum([metadata.row_group(i).num_rows for i in groups], dtype=np.int64)
        self._read: tuple[Any, pyarrow.Table | None] = (None, None)
        self._cursors: dict[str, _Cursor] = {}

    def type_of(self, name: str) -> pyarrow.DataType:
        """Return the type of a column."""
        return self._file.schema_arrow.field(name).type

    def read(self, names: Sequence[str], start: int, stop: int) -> pyarrow.Table:
        """Return columns of the rows start .. stop - 1. The row groups read last are kept.

        Raises ValueError if they are damaged.
        """
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        key = (tuple(names), first, last)
        if key != self._read[0]:
            with _readable():
                groups = list(range(first, last + 1))
                self._read = key, self._file.read_row_groups(groups, columns=list(names))
        table = self._read[1]
        assert table is not None
        return table.slice(start - self._group_begin(int(first)), stop - start)

    def _group_begin(self, group: int) -> int:
        return int(self._ends[group - 1]) if group else 0

    def picture(self, name: str, row: int) -> bytes:
        """Return the bytes in the column `name` at `row`. Reading rows in their order is cheapest.

        The column holds bytes, or a mapping with the bytes under "bytes", as `datasets` writes it.

        Raises ValueError if there are none, or if they are damaged.
        """
        group = int(np.searchsorted(self._ends, row, side="right"))
        begin = self._group_begin(group)
        with _readable():
            cursor = self._cursors.get(name)
            if cursor is None or row < cursor.begin or cursor.end < begin:
                groups = list(range(group, len(self._ends)))
                batches = self._file.iter_batches(_ROWS_PER_READ, groups, [name])
                cursor = self._cursors[name] = _Cursor(batches, begin)
            value = cursor.value(row).as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise ValueError(f"{name} holds no picture in row {row}")
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Cursor:
    """A position in a column that is read batch by batch.

    begin, end: the first row of the batch, and the row behind its last
    """

    def __init__(self, batches: Iterator[pyarrow.RecordBatch], begin: int):
        self._batches = batches
        self._batch: pyarrow.RecordBatch | None = None
        self.begin = self.end = begin

    def value(self, row: int) -> pyarrow.Scalar:
        """Return the value at a row that is not before `begin`."""
        while self._batch is None or row >= self.end:
            self._batch = next(self._batches)
            self.begin, self.end = self.end, self.end + self._batch.num_rows
        return self._batch.column(0)[row - self.begin]


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turn an error of pyarrow into a ValueError."""
    pyarrow = import_extra("pyarrow", "lerobot")
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"is no readable parquet file ({error})") from error


def is_numeric(kind: pyarrow.DataType) -> bool:
    """Is a column of numbers or flags, or of lists of them?"""
    types = import_extra("pyarrow.types", "lerobot")
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def is_text(kind: pyarrow.DataType) -> bool:
    """Is a column of texts?"""
    types = import_extra("pyarrow.types", "lerobot")
    return types.is_string(kind) or types.is_large_string(kind)


def to_numbers(column: pyarrow.ChunkedArray) -> np.ndarray:
    """Return a column of numbers or of lists of numbers as float32 [T] or [T, D].

    Lists of lists are flattened. A missing number becomes NaN.

    Raises ValueError if the rows hold different numbers of values.
    """
    pyarrow = import_extra("pyarrow", "lerobot")
    compute = import_extra("pyarrow.compute", "lerobot")
    length, array = len(column), column.combine_chunks()
    is_list = False
    while not pyarrow.types.is_primitive(array.type):
        is_list = True
        sizes = compute.value_counts(compute.list_value_length(array)).field("values").to_pylist()
        if len(sizes) > 1 or sizes == [None]:
            shown = ", ".join(str(size or "no") for size in sizes)
            raise ValueError(f"its rows hold different numbers of values: {shown}")
        array = array.flatten()
    values = array.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    values = values.astype(np.float32)
    return rearrange(values, "(t d) -> t d", t=length) if is_list and length else values
