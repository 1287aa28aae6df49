"""Values in parquet files: other types, missing and absurd numbers, rows that are missing."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from attacks.damages import EXTREMES


def damage_parquet(path: Path, draw: random.Random) -> str:
    """Change a column or the rows of a table, and write it as a sound file."""
    table = parquet.read_table(path)
    name = draw.choice(table.column_names)
    place = table.column_names.index(name)
    kind = draw.choice(("value", "value", "value", "type", "drop", "rows", "double", "nulls"))
    if kind == "drop":
        table = table.drop_columns([name])
    elif kind == "rows":
        first = draw.randrange(table.num_rows + 1)
        table = table.slice(first, draw.randrange(table.num_rows + 1))
    elif kind == "double":
        table = pa.concat_tables([table, table])
    else:
        column = _changed(table.column(name), kind, draw)
        if _is_empty_struct(column.type):  # which parquet cannot hold
            column = pa.nulls(len(column))
        table = table.set_column(place, name, column)
    new = path.with_name("new")
    parquet.write_table(table, new, row_group_size=draw.choice((1, 3, 1000)))
    new.replace(path)
    return f"{path.name}: {kind} of {name}"


def _is_empty_struct(kind: pa.DataType) -> bool:
    while pa.types.is_list(kind):
        kind = kind.value_type
    return pa.types.is_struct(kind) and kind.num_fields == 0


def _changed(column: pa.ChunkedArray, kind: str, draw: random.Random) -> pa.Array:
    values = column.to_pylist()
    if kind == "nulls" or not values:
        return pa.nulls(len(values), column.type)
    if kind == "type":
        other = draw.choice(
            (["text"], [b"bytes"], [None], [[[1.0]]], [{"bytes": b"", "path": None}], [True], [1.5])
        )
        return pa.array(other * len(values))
    row = draw.randrange(len(values))
    extreme = draw.choice((*EXTREMES, 10**12, -5, 3))
    if isinstance(values[row], list) and draw.random() < 0.5:
        values[row] = values[row][: draw.randrange(len(values[row]) + 1)]
    else:
        values[row] = [extreme] if isinstance(values[row], list) else extreme
    try:
        return pa.array(values, column.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        try:
            return pa.array([value if n == row else None for n, value in enumerate(values)])
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return pa.nulls(len(values), column.type)
