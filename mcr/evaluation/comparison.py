"""Comparison: runs of several variants and seeds -> one table and one picture.

It is for what compares: held-out accuracies and probes, not losses, which differ in kind between
variants. Called by scripts/compare_runs.py, which gathers the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


def summarise_runs(runs: pd.DataFrame, first: str = "") -> pd.DataFrame:
    """A row per variant; columns of two levels: "seeds", then (metric, "mean"), (metric, "sd").

    runs:  a row per run: "variant", "seed", and a column per metric; NaN where a run lacks one
    first: the variant that the others are compared with, if it is there; the rest by name
    sd:    over seeds, of a sample; NaN for a single one
    """
    groups = runs.drop(columns="seed").groupby("variant")
    table = groups.agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
    table.insert(0, ("seeds", ""), groups.size())
    return table.loc[_in_order(table.index, first)]


def _in_order(variants: Iterable[str], first: str) -> list[str]:
    return sorted(variants, key=lambda name: (name != first, name))


def to_markdown(table: pd.DataFrame) -> str:
    """What `summarise_runs` gives as a Markdown table, "mean ± sd"; a single seed has no ±."""
    metrics = [name for name, part in table.columns if part == "mean"]
    lines = [
        f"| variant | seeds | {' | '.join(metrics)} |",
        f"|---|---|{'---|' * len(metrics)}",
    ]
    for variant, row in table.iterrows():
        cells = [_cell(row[(name, "mean")], row[(name, "sd")]) for name in metrics]
        lines.append(f"| {variant} | {int(row[('seeds', '')])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(mean: float, sd: float) -> str:
    if np.isnan(mean):
        return ""
    digits = 1 if abs(mean) >= 10 else 3
    return f"{mean:.{digits}f}" + ("" if np.isnan(sd) else f" ± {sd:.{digits}f}")


def plot_comparison(
    runs: pd.DataFrame, path: str | Path, metrics: Sequence[str], first: str = ""
) -> None:
    """Write a PNG: a column per metric, a row per variant; a dot per seed, a bar for their mean.

    runs, first: as for `summarise_runs`. A dashed line carries the first variant's mean down.
    """
    means = runs.groupby("variant")[list(metrics)].mean()
    order = _in_order(means.index, first)
    figure = Figure(
        figsize=(1.6 + 2.1 * len(metrics), 1.1 + 0.3 * len(order)), layout="constrained"
    )
    for axes, metric in zip(
        figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0], metrics, strict=True
    ):
        if first in means.index:
            axes.axvline(means.loc[first, metric], color="0.6", linestyle="--", linewidth=1)
        for place, variant in enumerate(order):
            seeds = runs.loc[runs["variant"] == variant, metric]
            colour = "C0" if variant == first else "C1"
            axes.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.6, markersize=5)
            axes.plot(means.loc[variant, metric], place, "|", color=colour, markersize=13, mew=2)
        axes.set_title(metric, fontsize=9)
        axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order], fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3)
    axes.invert_yaxis()
    figure.savefig(path, dpi=110)
