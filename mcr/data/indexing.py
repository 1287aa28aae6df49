"""Indexing: read a data set once, in parallel, and write the folder that `index.py` opens.

Whether an episode is fit for training is a filter of the recipe (`selection.py`), not a property of
the index. An episode that cannot be read at all is left out and listed under "problems".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd

from mcr.data.episode import unique_names
from mcr.data.sources.source import Columns, Contents, Part, Source
from mcr.errors import UserError
from mcr.runs.atomic import atomic_path
from mcr.runs.processes import ordered_map, progress_bar

FORMAT = "mcr-index-2"


def write_index(source: Source, path: Path, workers: int = 0, executor: str = "local") -> None:
    """Write the index of `source` to the folder `path`, whole or not at all.

    workers, executor: as for `ordered_map`; small data is read in this process
    Memory: one episode per worker, and 3 to 4 KB per row.

    Raises UserError if no episode can be used, or if `path` cannot be written.
    """
    if executor == "local" and source.is_small():
        workers = 1
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(atomic_path(path))
            folder.mkdir()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; choose a place with data.index=") from error
        rows, columns, problems = _write_steps(source, folder, _read(source, workers, executor))
        pictures = Counter(row["picture"] for row in rows)
        usual = pictures.most_common(1)[0][0] if rows else (0, 0, "")
        table = _sorted_table([row for row in rows if row["picture"] == usual])
        problems += [
            f"{row['name'] or row['file_path']}: frames are {row['picture']}, "
            f"in other episodes {usual}"
            for row in rows
            if row["picture"] != usual
        ]
        if table.empty:
            shown = "".join(f"\n  {problem}" for problem in problems[:5])
            raise UserError(f"{source.root}: no usable episode{shown}")
        _write_rows(folder, table)
        info = {
            "format": FORMAT,
            "kind": source.kind,
            "source": str(source.root.resolve()),
            "fingerprint": _fingerprint(table),
            "episodes": len(table),
            "total_steps": sum(row["length"] for row in rows),
            "cameras": source.cameras(),
            "frame_size": usual[:2],
            "suffix": usual[2],
            "columns": columns,
            "num_signals": max(end for _, end in columns.values()),
            "shards": source.shards,
            "stamp": source.stamp(),
            "problems": problems,
        }
        (folder / "index.json").write_text(json.dumps(info, indent=1))


def _read(source: Source, workers: int, executor: str) -> Iterator[Contents]:
    """Yield the contents of the parts in order, with a progress bar."""
    parts = source.parts()
    with progress_bar(None, "index", source.unit, sum(part.size for part in parts)) as bar:
        bar.unit_scale = True
        contents = ordered_map(_read_part, parts, workers, executor)
        for part, content in zip(parts, contents, strict=True):
            bar.update(part.size)
            yield content


def _read_part(part: Part) -> Contents:
    return part.read()


def _write_steps(
    source: Source, folder: Path, contents: Iterable[Contents]
) -> tuple[list[dict[str, Any]], Columns, list[str]]:
    """Write the arrays of all steps. Return all rows, the columns of the signals, and problems.

    A row gets the keys "start" (its first step in the arrays) and "crc" (of its signals).
    """
    rows: list[dict[str, Any]] = []
    columns: Columns = {}
    problems: list[str] = []
    total_steps = 0
    with (
        (folder / "signals.f32").open("wb") as signals,
        (folder / "frame_offsets.i64").open("wb") as offsets,
        (folder / "frame_lengths.i32").open("wb") as lengths,
    ):
        for content in contents:
            problems += content.problems
            columns = columns or content.columns
            if content.rows and content.columns != columns:
                where = content.rows[0]["name"] or content.rows[0]["file_path"]
                raise UserError(
                    f"{source.root}: {where} has signals {content.columns}, earlier ones "
                    f"{columns}; one data set must have one set of signals"
                )
            for row, array in zip(content.rows, content.signals, strict=True):
                row["start"] = total_steps
                row["crc"] = google_crc32c.value(array.tobytes())
                total_steps += row["length"]
                signals.write(array.tobytes())
            for file, arrays in (
                (offsets, content.frame_offsets),
                (lengths, content.frame_lengths),
            ):
                for array in arrays:
                    file.write(array.tobytes())
            rows += content.rows
    return rows, columns, problems


def _sorted_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows by name. Rows of shards are named here: a name depends on all the others."""
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    if not table["name"].any():
        table["name"] = unique_names(table["file_path"].tolist())
    return table.sort_values("name", ignore_index=True)


def _write_rows(folder: Path, table: pd.DataFrame) -> None:
    table.drop(columns=["crc", "picture"]).to_csv(folder / "episodes.csv", index=False)
    np.save(folder / "names.npy", np.array([name.encode() for name in table["name"]]))
    np.save(folder / "starts.npy", table["start"].to_numpy(np.int64))
    np.save(folder / "lengths.npy", table["length"].to_numpy(np.int64))
    np.save(folder / "shards.npy", table["shard"].to_numpy(np.int32))


def _fingerprint(table: pd.DataFrame) -> str:
    digest = hashlib.sha256()
    for name, length, crc in zip(table["name"], table["length"], table["crc"], strict=True):
        digest.update(f"{name} {length} {crc}\n".encode())
    return digest.hexdigest()
