"""The curves of a pre-training run in one PNG; a part of the page that `summary.py` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mcr.training.run_folder import KNOWN_CHANCE

_SPLITS = {"train": "training", "val": "held out"}


def plot_curves(metrics: pd.DataFrame, path: str | Path) -> None:
    """Write a PNG: a column per objective with its loss above its score; gradients, embeddings and
    speed below. Each data set of a mixture has its own lines.

    metrics: as `read_metrics` returns them
    """
    labels = [column.removesuffix("/loss") for column in metrics if column.endswith("/loss")]
    names = list(dict.fromkeys(label.rpartition("/")[2] for label in labels))
    # Axes are placed by hand because a layout engine takes twice the time of drawing.
    figure = Figure(figsize=(13, 8.2))
    places = figure.add_gridspec(2, len(names), left=0.06, right=0.98, top=0.96, bottom=0.4)
    objectives = places.subplots(sharex=True, squeeze=False)
    for name, (above, below) in zip(names, objectives.T, strict=True):
        above.set_title(name.replace("_", " "), fontsize=11)
        of_objective = [label for label in labels if label.rpartition("/")[2] == name]
        for number, label in enumerate(of_objective):
            _plot(above, metrics, f"{label}/loss", "loss", number)
            _plot_score(below, metrics, label, number)
        if below.lines:
            below.legend(fontsize=8)
    places = figure.add_gridspec(1, 3, left=0.06, right=0.94, top=0.32, bottom=0.06, wspace=0.45)
    _plot_health(places.subplots(squeeze=False)[0], metrics, labels)
    figure.savefig(path, dpi=110)


def _plot_score(axes: Axes, metrics: pd.DataFrame, label: str, number: int) -> None:
    """Plot the score of an objective on one data set, and its chance level."""
    score = next((s for s in ("accuracy", "r2") if f"{label}/{s}" in metrics), None)
    if score is None:
        return
    _plot(axes, metrics, f"{label}/{score}", "R²" if score == "r2" else score, number)
    chance = f"{label}/chance"
    level = metrics[chance].mean() if chance in metrics else KNOWN_CHANCE.get(score, 0.0)
    axes.axhline(level, color="0.4", linestyle=":", label="chance" if number == 0 else None)


def _plot(axes: Axes, metrics: pd.DataFrame, column: str, label: str, number: int = 0) -> None:
    """Plot a metric of the `number`-th data set, in its colours."""
    data_set = column.rpartition("/")[0].rpartition("/")[0]
    for place, (split, name) in enumerate(_SPLITS.items()):
        name, colour = f"{data_set} {name}".strip(), f"C{(2 * number + place) % 10}"
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


def _plot_health(places: np.ndarray, metrics: pd.DataFrame, labels: list[str]) -> None:
    rows = metrics[metrics["split"] == "train"]
    gradients, embedding, speed = places
    for label in labels:
        if f"{label}/embedding_gradient" in rows:
            values = rows[f"{label}/embedding_gradient"]
            name = label.replace("_", " ").replace("/", ": ")
            gradients.semilogy(rows["step"], values, label=name, linewidth=1.2)
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
    """Plot two metrics of different units over the same steps, each with its own axis.

    A metric of several data sets is plotted as their mean.
    """
    for side, column, colour in ((axes, left, "C2"), (axes.twinx(), right, "C4")):
        values = rows.filter(regex=rf"(^|/){column}$")
        if len(values.columns):
            side.plot(rows["step"], values.mean(axis=1), color=colour, linewidth=1.2)
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
