"""The curves of a pre-training run in one PNG; a part of the page that `summary.py` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mcr.training.run_folder import KNOWN_CHANCE

_SPLITS = {"train": ("training", "C0"), "val": ("held out", "C1")}


def plot_curves(metrics: pd.DataFrame, path: str | Path) -> None:
    """Write a PNG: a column per objective with its loss above its score; gradients, embeddings and
    speed below.

    metrics: as `read_metrics` returns them
    """
    names = [column.removesuffix("/loss") for column in metrics if column.endswith("/loss")]
    # Axes are placed by hand because a layout engine takes twice the time of drawing.
    figure = Figure(figsize=(13, 8.2))
    places = figure.add_gridspec(2, len(names), left=0.06, right=0.98, top=0.96, bottom=0.4)
    objectives = places.subplots(sharex=True, squeeze=False)
    for name, (above, below) in zip(names, objectives.T, strict=True):
        above.set_title(name.replace("_", " "), fontsize=11)
        _plot(above, metrics, f"{name}/loss", "loss")
        score = next((s for s in ("accuracy", "r2") if f"{name}/{s}" in metrics), None)
        if score:
            _plot(below, metrics, f"{name}/{score}", "R²" if score == "r2" else score)
            chance = f"{name}/chance"
            level = metrics[chance].mean() if chance in metrics else KNOWN_CHANCE.get(score, 0.0)
            below.axhline(level, color="0.4", linestyle=":", label="chance")
            below.legend(fontsize=8)
    places = figure.add_gridspec(1, 3, left=0.06, right=0.94, top=0.32, bottom=0.06, wspace=0.45)
    _plot_health(places.subplots(squeeze=False)[0], metrics, names)
    figure.savefig(path, dpi=110)


def _plot(axes: Axes, metrics: pd.DataFrame, column: str, label: str) -> None:
    for split, (name, colour) in _SPLITS.items():
        rows = metrics[metrics["split"] == split].dropna(subset=[column])
        steps, values = rows["step"], rows[column]
        if split == "val":
            axes.plot(steps, values, "o-", color=colour, markersize=4, linewidth=1.5, label=name)
        else:
            width = max(1, len(rows) // 30)
            smooth = values.rolling(width, min_periods=1, center=True).mean()
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(steps, smooth, color=colour, linewidth=1.5, label=name)
    _label(axes, label)


def _plot_health(places: np.ndarray, metrics: pd.DataFrame, names: list[str]) -> None:
    rows = metrics[metrics["split"] == "train"]
    gradients, embedding, speed = places
    for name in names:
        if f"{name}/embedding_gradient" in rows:
            values = rows[f"{name}/embedding_gradient"]
            gradients.semilogy(rows["step"], values, label=name.replace("_", " "), linewidth=1.2)
    if gradients.lines:
        gradients.legend(fontsize=8)
    _label(gradients, "gradient at the embeddings", "pull of each objective")
    _plot_pair(embedding, rows, "embedding/effective_rank", "embedding/spread")
    embedding.set_title("embeddings", fontsize=10)
    _plot_pair(speed, rows, "images_per_s", "data_wait")
    speed.set_title("speed", fontsize=10)
    for axes in (gradients, embedding, speed):
        axes.set_xlabel("step", fontsize=9)


def _plot_pair(axes: Axes, rows: pd.DataFrame, left: str, right: str) -> None:
    """Plot two metrics of different units over the same steps, each with its own axis."""
    for side, column, colour in ((axes, left, "C2"), (axes.twinx(), right, "C4")):
        if column in rows:
            side.plot(rows["step"], rows[column], color=colour, linewidth=1.2)
            side.set_ylim(bottom=0)
        _label(side, column.rpartition("/")[2].replace("_", " ").replace(" per ", "/"))
        side.yaxis.label.set_color(colour)


def _label(axes: Axes, label: str, title: str = "") -> None:
    axes.set_ylabel(label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if title:
        axes.set_title(title, fontsize=10)
