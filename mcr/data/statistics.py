"""Statistics: mean, deviation and percentiles of a space, over all steps of a data set.

They are computed on first use in one pass over the signals and kept in the index's
`statistics.json`. If that file cannot be written, they are computed for every run. They are of the
whole data set, whatever a recipe filters or holds out, so runs on parts of it and their validation
share one scale. The losses' normaliser (`training/pretrainer.py`) uses mean and deviation. The rest
is for policies.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from pathlib import Path

import numpy as np

from mcr.data.index import Index
from mcr.data.spaces import Space
from mcr.errors import UserError
from mcr.runs.processes import progress_bar

_CHUNK = 100_000  # steps that are in memory at a time
_MAX_STEPS_FOR_PERCENTILES = 1_000_000


def space_statistics(index: Index, space: Space) -> dict[str, list[float]]:
    """Return {"mean", "std", "q01", "q99"}, each [D]. Raises UserError for a damaged file."""
    path = index.path / "statistics.json"
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run again") from error
    if space.name not in known:
        known[space.name] = _compute(index, space)
        _store(path, known)
    return known[space.name]


def _compute(index: Index, space: Space) -> dict[str, list[float]]:
    """Compute the statistics. Percentiles are those of an even subsample."""
    total = index.info["total_steps"]
    stride = -(-total // _MAX_STEPS_FOR_PERCENTILES)
    mean, square = np.zeros(space.size), np.zeros(space.size)
    sample = []
    with progress_bar(None, f"statistics of {space.name}", "steps", total) as bar:
        for begin in range(0, total, _CHUNK):
            steps = np.arange(begin, min(begin + _CHUNK, total))
            values = space.read(index.signals, steps).astype(np.float64)
            # Chan's update: exact where sums of squares would cancel
            shift = values.mean(0) - mean
            mean += shift * len(steps) / (begin + len(steps))
            square += values.var(0) * len(steps)
            square += shift**2 * begin * len(steps) / (begin + len(steps))
            sample.append(values[-begin % stride :: stride])
            bar.update(len(steps))
    low, high = np.quantile(np.concatenate(sample), [0.01, 0.99], axis=0)
    std = np.sqrt(square / total)
    numbers = {"mean": mean, "std": std, "q01": low, "q99": high}
    return {name: values.tolist() for name, values in numbers.items()}


def _store(path: Path, content: dict[str, dict[str, list[float]]]) -> None:
    """Write the file atomically.

    The temporary name is unique because two runs may write at once. The later one wins.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(path)
    except OSError as error:
        print(f"{path}: {error.strerror}; the statistics are computed anew for every run")
        with contextlib.suppress(OSError):  # where nothing can be written, nothing is left over
            partial.unlink()
