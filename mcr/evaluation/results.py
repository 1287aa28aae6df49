"""Results of an evaluation: a CSV that grows row by row, and a table and a plot of it.

    <folder>/protocol.json   the settings that all rows share; other settings are refused
             results.csv     a row per task, encoder and seed, with all that repeating it needs
             results.md      a table of encoders and tasks, with 95% intervals
             results.png     the same as a plot

Called by `success_rates` and `offline`.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from mcr.errors import UserError
from mcr.evaluation.contestants import PROPRIOCEPTION_ONLY
from mcr.evaluation.intervals import hierarchical_bootstrap
from mcr.runs.atomic import atomic_path, write_text

POOLED = "pooled"  # the usual policy, in the column "policy"
MEAN = "mean"  # stands in the column "task" of the mean over tasks
_PROTOCOL, _RESULTS = "protocol.json", "results.csv"
_PRETRAINING_SEED = r"/seed\d+(?=$| )"  # a word may follow, as in "without proprioception"
_PACKAGES = ("mcr", "torch", "torchvision", "numpy", "mujoco", "metaworld", "robosuite")


class Results:
    """The rows of one folder. A row is on the disk when `add` returns."""

    def __init__(self, folder: str | Path, protocol: Mapping[str, Any]):
        """Open or make a folder. Raises UserError if its rows have another protocol.

        protocol.json is written with the first rows, so an evaluation that fails before claims
        nothing about the folder.
        """
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / _RESULTS
        self._protocol = json.dumps(protocol, indent=1)
        if self._path.exists():
            _require_protocol(self.folder / _PROTOCOL, json.loads(self._protocol))
        names = ("encoder", "policy", "task", "weights", "preprocessing", "seed")
        known = dict.fromkeys(names, str)
        self.rows = (
            pd.read_csv(self._path, dtype=known, keep_default_na=False, na_values={"value": [""]})
            if self._path.exists()
            else pd.DataFrame(columns=list(known))
        )
        if "successes" in self.rows and "policy" not in self.rows:  # an earlier version's
            blind = self.rows["encoder"] == PROPRIOCEPTION_ONLY
            self.rows["policy"] = np.where(blind, "", POOLED)

    def has(
        self, encoder: str, identity: Mapping[str, str], task: str, policy: str | None = None
    ) -> bool:
        """Whether the encoder has rows for the task and, if one is given, for this policy.

        identity: the columns that say which encoder it is, for example its "weights"
        Raises UserError if the rows of this name are of another encoder.
        """
        same = self.rows[(self.rows["encoder"] == encoder) & (self.rows["task"] == task)]
        for column, value in identity.items():
            if others := sorted(set(same[column]) - {value}):
                raise UserError(
                    f"{self._path}: the rows of {encoder!r} are of other {column} "
                    f"({_short(others[0])}, not {_short(value)}); give this encoder another name "
                    "(NAME=PATH) or another --out"
                )
        return len(same if policy is None else same[same["policy"] == policy]) > 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows. Each needs "encoder" and "task", and the columns of its identity."""
        new = pd.DataFrame(rows)
        # pandas makes floats of counts where the other frame has no such column
        self.rows = pd.concat([self.rows, new], ignore_index=True) if len(self.rows) else new
        write_text(self.folder / _PROTOCOL, self._protocol + "\n")
        with atomic_path(self._path) as partial:
            self.rows.to_csv(partial, index=False)

    def write_report(self, scores: pd.DataFrame, percent: bool, remarks: str = "") -> str:
        """Write results.md and results.png of `scores`; returns the table and the remarks.

        scores, percent: as for `to_markdown`
        remarks:         what must be known to read the table; it stands below it
        """
        text = to_markdown(scores, percent) + (f"\n{remarks}\n" if remarks else "")
        write_text(self.folder / "results.md", text)
        with atomic_path(self.folder / "results.png") as partial:
            plot_scores(scores, partial, percent)
        return text


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value or "none"


def _require_protocol(path: Path, protocol: Mapping[str, Any]) -> None:
    then = json.loads(path.read_text()) if path.exists() else {}
    changes = [
        f"{key}={then.get(key)}, not {protocol.get(key)}"
        for key in sorted({*then, *protocol})
        if then.get(key) != protocol.get(key)
    ]
    if changes:
        raise UserError(
            f"{path.parent}: holds results of another protocol ({'; '.join(changes)}); choose "
            "another --out, or the same options"
        )


def versions() -> str:
    """Versions of the installed packages that influence results: "mcr 0.1.0, torch 2.6.0, ..."."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


# --------------------------------------------------------------------------- success


def success_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Success rates: a table with encoder, task, value, low, high, sd.

    rows: a row per seed, with encoder, task, seed, successes, trials

    low and high are Wilson's 95% interval over the rollouts of all seeds, sd is the standard
    deviation of the seeds' own rates. After the tasks of an encoder comes its mean over tasks,
    whose interval is over the rollouts of all tasks. An encoder that lacks a task has no mean.

    An encoder with another policy than the usual one is "NAME, POLICY". Encoders that are called
    NAME/seed0, NAME/seed1, ... are pretraining seeds of one recipe and stand together as
    "NAME (2 seeds)", for tasks that all of them have. Their interval is of
    `hierarchical_bootstrap`, and sd is the deviation of the pretraining seeds' rates.
    """
    counts = rows.astype({"successes": int, "trials": int})
    counts["row"] = _rows_of_table(counts)
    tasks = list(dict.fromkeys(counts["task"]))
    scores = []
    for row, of_row in counts.groupby("row", sort=False):
        encoders = of_row["encoder"].nunique()
        complete = [
            (task, of_task)
            for task, of_task in of_row.groupby("task", sort=False)
            if of_task["encoder"].nunique() == encoders
        ]
        scores += [{"encoder": row, "task": task, **_rate(of_task)} for task, of_task in complete]
        if len(complete) == len(tasks) > 1:
            scores.append({"encoder": row, "task": MEAN, **_rate(of_row)})
    return pd.DataFrame(scores)


def _rows_of_table(rows: pd.DataFrame) -> pd.Series:
    """The name of the table's row that each row is part of."""
    recipes = rows["encoder"].str.replace(_PRETRAINING_SEED, "", regex=True)
    seeds = rows.groupby(recipes)["encoder"].transform("nunique")
    names = rows["encoder"].where(seeds == 1, recipes + " (" + seeds.astype(str) + " seeds)")
    return names.where(rows["policy"].isin(["", POOLED]), names + ", " + rows["policy"])


def _rate(rows: pd.DataFrame) -> dict[str, float]:
    if rows["encoder"].nunique() == 1:
        return _rate_of_encoder(rows)
    counts = rows.set_index(["encoder", "task", "seed"])[["successes", "trials"]].sort_index()
    shape = [len(level) for level in counts.index.remove_unused_levels().levels]
    successes, trials = (counts[key].to_numpy().reshape(shape) for key in ("successes", "trials"))
    rng = np.random.default_rng(0)
    value, low, high = hierarchical_bootstrap(successes, trials, rng)
    sd = float((successes / trials).mean(axis=(1, 2)).std(ddof=1))
    return {"value": value, "low": low, "high": high, "sd": sd}


def _rate_of_encoder(rows: pd.DataFrame) -> dict[str, float]:
    successes, trials = int(rows["successes"].sum()), int(rows["trials"].sum())
    low, high = binomtest(successes, trials).proportion_ci(method="wilson")
    of_seeds = rows.groupby("seed")[["successes", "trials"]].sum()
    sd = float((of_seeds["successes"] / of_seeds["trials"]).std())
    return {"value": successes / trials, "low": low, "high": high, "sd": sd}


# --------------------------------------------------------------------------- table and plot


def to_markdown(scores: pd.DataFrame, percent: bool) -> str:
    """A table with a row per encoder, the best mean first, and a column per task.

    scores:  encoder, task, value, low, high
    percent: whether values are rates in 0..1, to be written as percentages
    A cell reads "value (low to high)".
    """
    tasks = list(dict.fromkeys(scores["task"]))
    tasks.sort(key=lambda task: task == MEAN)  # the mean comes last
    cells = {
        (row.encoder, row.task): _cell(row.value, row.low, row.high, percent)
        for row in scores.itertuples()
    }
    lines = [f"| encoder | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for encoder in _in_order(scores):
        lines.append(
            f"| {encoder} | {' | '.join(cells.get((encoder, task), '') for task in tasks)} |"
        )
    return "\n".join(lines) + "\n"


def _cell(value: float, low: float, high: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.0f}% ({100 * low:.0f} to {100 * high:.0f})"
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _in_order(scores: pd.DataFrame) -> list[str]:
    """Encoders, the best mean (or the best in the only task) first, those without a mean last."""
    names, tasks = (list(dict.fromkeys(scores[key])) for key in ("encoder", "task"))
    decisive = MEAN if MEAN in tasks else tasks[0] if len(tasks) == 1 else None
    values = scores[scores["task"] == decisive].set_index("encoder")["value"]
    return sorted(names, key=lambda name: -values.get(name, -math.inf))


def plot_scores(scores: pd.DataFrame, path: str | Path, percent: bool) -> None:
    """Write a PNG of values and 95% intervals: a column per task, a row per encoder."""
    encoders = _in_order(scores)
    tasks = list(dict.fromkeys(scores["task"]))
    tasks.sort(key=lambda task: task == MEAN)
    figure = Figure(
        figsize=(2.2 + 1.7 * len(tasks), 0.9 + 0.3 * len(encoders)), layout="constrained"
    )
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        part = scores[scores["task"] == task].set_index("encoder").reindex(encoders)
        value, below, above = (part[key].to_numpy(float) for key in ("value", "low", "high"))
        margins = [(value - below).clip(0), (above - value).clip(0)]
        colour = "C3" if task == MEAN else "C0"
        axes.errorbar(value, range(len(encoders)), xerr=margins, fmt="o", color=colour, capsize=3)
        axes.set_title(task.rpartition("/")[2], fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=8)
        if percent:
            axes.set_xlim(-0.03, 1.03)
            axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
    panels[0].set_yticks(range(len(encoders)), encoders)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=150, format="png")
