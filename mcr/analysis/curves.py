"""Loss and accuracy curves of a run, as one picture, from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pandas as pd

from mcr.errors import UserError

matplotlib.use("Agg")
from matplotlib import pyplot


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """metrics.jsonl as a table: step, split ("train" or "val"), and a column per metric."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the run_dir of a training run")
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])


def final_accuracies(metrics: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Objective -> (held-out accuracy, chance level) at the last validation; {} without any."""
    if not (metrics["split"] == "val").any():
        return {}
    last = metrics[metrics["split"] == "val"].tail(1)
    names = [name.removesuffix("/accuracy") for name in last if name.endswith("/accuracy")]
    return {
        name: (float(last[f"{name}/accuracy"].iloc[0]), float(last[f"{name}/chance"].iloc[0]))
        for name in names
    }


def plot_curves(metrics: pd.DataFrame, path: str | Path) -> None:
    """Write a PNG: a column per objective; its loss above, its accuracy against chance below."""
    names = [column.removesuffix("/loss") for column in metrics if column.endswith("/loss")]
    figure, axes = pyplot.subplots(
        2, len(names), figsize=(4.2 * len(names), 6), squeeze=False, layout="constrained"
    )
    for name, (above, below) in zip(names, axes.T, strict=True):
        above.set_title(name.replace("_", " "))
        _lines(above, metrics, f"{name}/loss", "loss")
        score = next((s for s in ("accuracy", "r2") if f"{name}/{s}" in metrics), None)
        if score:
            _lines(below, metrics, f"{name}/{score}", score)
            chance = metrics[f"{name}/chance"].mean() if f"{name}/chance" in metrics else 0.0
            below.axhline(chance, color="grey", linestyle=":", label="chance")
        above.legend()
        below.set_xlabel("step")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _lines(axes: pyplot.Axes, metrics: pd.DataFrame, column: str, label: str) -> None:
    for split, style in (("train", "-"), ("val", "o-")):
        rows = metrics[metrics["split"] == split].dropna(subset=[column])
        name = "training" if split == "train" else "held out"
        axes.plot(rows["step"], rows[column], style, label=name, markersize=4)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
