"""Idle steps: steps that a recipe leaves out because the robot does nothing in them.

There are two ways, both used by openpi (Physical Intelligence) for DROID: a published file of
ranges to keep, and a rule that finds idle steps. `selection.py` calls them when a run starts. Masks
have one bool per step of the data set and exist only then. Sampling gets ranges, `KeptSteps`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mcr.data.episode import Origin, unique_names
from mcr.data.index import Index
from mcr.data.sampling import KeptSteps
from mcr.data.schema import RecordingSchema, load_schema
from mcr.errors import UserError

_COMMAND = "action_dict/joint_velocity"
_CHUNK = 1_000_000  # steps whose commands are in memory at a time


def moving_steps(index: Index, change: float, num_steps: int) -> np.ndarray:
    """Return the steps to keep, bool [total_steps].

    A step is idle if the commanded velocity of every joint differs by less than `change` from the
    step before. Idle steps are dropped if at least `num_steps` of them follow each other. openpi
    uses 1e-3 and 7. The rule looks at the change because a resting arm may be commanded a small
    constant velocity. It therefore also drops steps with a large constant velocity.
    openpi also drops motions of fewer than 16 steps and the last 10 steps of each range, for its
    action chunks. There are no action chunks here.

    Raises UserError for numbers that are not positive and for a data set without this signal.
    """
    if change <= 0 or num_steps < 1:
        raise UserError(
            f"data.selection: idle_change={change} must be above 0, idle_steps={num_steps} above 0"
        )
    columns = index.columns((_COMMAND,), "data.selection.idle=drop")
    idle = np.zeros(index.info["total_steps"], bool)
    for begin in range(1, len(idle), _CHUNK):
        commands = index.signals[begin - 1 : begin + _CHUNK][:, columns]
        idle[begin : begin + _CHUNK] = (np.abs(np.diff(commands, axis=0)) < change).all(axis=1)
    idle[_borders(index)[:-1]] = False  # the first step of an episode has no step before it
    edges = np.flatnonzero(np.diff(idle, prepend=False, append=False))
    run_lengths = edges[1::2] - edges[::2]
    idle[idle] = np.repeat(run_lengths >= num_steps, run_lengths)
    return ~idle


def listed_steps(index: Index, path: str) -> tuple[np.ndarray, str]:
    """Return the steps that a file keeps, bool [total_steps], and how many episodes it names.

    path: JSON, {"<recording_folderpath>--<file_path>": [[first, one past the last], ...], ...} as
          in `droid_sample_ranges_v1_0_1.json`

    An episode is found by the last five components of its `file_path`. Trees of upstream's script
    have no `file_path`; there it is found by its name. A key may also be a name.

    Raises UserError for a file of another form and for ranges beyond the end of an episode.
    """
    by_row, found = _ranges_by_row(index, _read_ranges(Path(path)))
    mask = np.zeros(index.info["total_steps"], bool)
    for row, ranges in by_row.items():
        start, length = int(index.starts[row]), int(index.lengths[row])
        for begin, end in ranges:
            if begin < 0 or end > length:
                raise UserError(
                    f"{path}: keeps steps {begin} to {end} of {index.names[row].decode()}, which "
                    f"has {length}; it was made for other data"
                )
            mask[start + begin : start + end] = True
    return mask, found


def _read_ranges(path: Path) -> dict[str, list[list[int]]]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"data.selection.keep_ranges={path}: no readable JSON ({error})") from error
    if not isinstance(content, dict) or not all(map(_are_ranges, content.values())):
        raise UserError(f"{path}: not of the form {{episode: [[first, one past the last], ...]}}")
    return content


def _are_ranges(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(step) is int for step in pair)
        for pair in value
    )


def _ranges_by_row(
    index: Index, ranges: dict[str, list[list[int]]]
) -> tuple[dict[int, list[list[int]]], str]:
    paths = [key.rpartition("--")[2] for key in ranges]
    by_path = {_tail(path): value for path, value in zip(paths, ranges.values(), strict=True)}
    recording = load_schema("droid").recording
    origins = [_origin(recording, path) for path in paths]
    by_name = dict(zip(unique_names(origins), ranges.values(), strict=True))
    matched_by_path, matched_by_name = {}, {}
    table = index.table[["name", "file_path"]]
    for row, (name, path) in enumerate(table.itertuples(index=False)):
        if path and _tail(path) in by_path:
            matched_by_path[row] = by_path[_tail(path)]
        elif name in by_path:
            matched_by_name[row] = by_path[name]
        elif not path and name in by_name:
            matched_by_name[row] = by_name[name]
    num_lost = len(table) - len(matched_by_path) - len(matched_by_name)
    return matched_by_path | matched_by_name, (
        f"{len(matched_by_path)} episodes found in it by path, {len(matched_by_name)} by name, "
        f"{num_lost} not"
    )


def _origin(recording: RecordingSchema, path: str) -> Origin | None:
    """Return what a path tells; None if it is a name, or tells nothing."""
    try:
        return Origin.of(recording, path, _tail(path))
    except ValueError:
        return None


def _tail(path: str) -> str:
    """Return <lab>/<outcome>/<date>/<recording>/trajectory.h5, which is the same in any bucket."""
    return "/".join(path.split("/")[-5:])


# --------------------------------------------------------------------------- masks to ranges


def kept_steps(index: Index, mask: np.ndarray) -> KeptSteps:
    """Return the ranges of a mask [total_steps], for every episode of the index."""
    starts = np.asarray(index.starts)
    border = _borders(index)
    begins = np.flatnonzero(mask & (border[:-1] | ~np.roll(mask, 1)))
    ends = np.flatnonzero(mask & (border[1:] | ~np.roll(mask, -1))) + 1
    in_file = np.argsort(starts)
    rows = in_file[np.searchsorted(starts[in_file], begins, side="right") - 1]
    # the arrays also hold steps of episodes that the index has left out
    is_indexed = (starts[rows] <= begins) & (begins < starts[rows] + index.lengths[rows])
    by_row = np.flatnonzero(is_indexed)[np.argsort(rows[is_indexed], kind="stable")]
    rows, begins, sizes = rows[by_row], begins[by_row], (ends - begins)[by_row]
    lengths = np.bincount(rows, sizes, len(index)).astype(np.int64)
    return KeptSteps(
        begins=(begins - starts[rows]).astype(np.int32),
        offsets=np.cumsum(sizes) - sizes,
        bases=np.cumsum(lengths) - lengths,
        lengths=lengths,
    )


def _borders(index: Index) -> np.ndarray:
    """Return bool [total_steps + 1]: does an episode begin at this step, or end before it?"""
    border = np.zeros(index.info["total_steps"] + 1, bool)
    border[[0, -1]] = True
    border[index.starts] = True
    border[index.starts + index.lengths] = True
    return border
