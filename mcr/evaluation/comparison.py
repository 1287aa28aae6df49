"""Comparison of training runs, of several variants and seeds: a table and a plot.

It compares held-out accuracies and probes. Losses of different variants are not comparable. Called
by `mcr compare`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mcr.data.batch import labelled
from mcr.data.index import open_index
from mcr.data.mixture import data_sets
from mcr.data.selection import select_episodes, split_sessions
from mcr.errors import UserError
from mcr.evaluation.probes import probe_encoder
from mcr.models.loading import load_model
from mcr.runs.atomic import atomic_path, write_text
from mcr.training.checkpoint import list_checkpoints
from mcr.training.config import Config
from mcr.training.run_folder import final_metrics, load_config, read_metrics

MEASURES = {
    "dynamics_alignment/accuracy": "dynamics accuracy",
    "time_contrastive/accuracy": "time accuracy",
    "action_prediction/r2": "action head R²",
    "embedding/effective_rank": "effective rank",
}


def compare_runs(
    folders: Sequence[Path], out: Path | None = None, first: str = "full", probe: bool = True
) -> str:
    """Gather runs into comparison.csv, comparison.md and comparison.png.

    folders: runs, or folders of runs
    out:     folder of the three files; None = the first of `folders`
    first:   the variant that the others are compared with
    probe:   also fit probes on the frozen encoders, which reads the training data
    Returns the table in Markdown. Raises UserError if there is no run, and as `probe_encoder`.
    """
    out = out or folders[0]
    runs = _gather(folders, probe)
    metrics = list(runs.columns[2:])
    out.mkdir(parents=True, exist_ok=True)
    table = to_markdown(summarise_runs(runs, first))
    with atomic_path(out / "comparison.csv") as partial:
        runs.to_csv(partial, index=False)
    write_text(out / "comparison.md", table)
    plot_comparison(runs, out / "comparison.png", metrics, first)
    return table


def _gather(folders: Sequence[Path], probe: bool) -> pd.DataFrame:
    """A row per run: "variant", "seed", and a column for each metric that any run has."""
    rows = []
    for variant, run_dir in _find_runs(folders):
        config = load_config(run_dir)
        held_out = final_metrics(read_metrics(run_dir))["val"]
        row = {"variant": variant, "seed": config.seed}
        row |= {name: held_out.get(metric) for metric, name in MEASURES.items()}
        if probe:
            print(f"probing {run_dir}")
            row |= {f"{k} probe R²": v for k, v in _probe_run(run_dir, config).items()}
        rows.append(row)
    if not rows:
        raise UserError(f"{folders[0]}: no training run is in it")
    runs = pd.DataFrame(rows)
    metrics = [name for name in runs.columns[2:] if runs[name].notna().any()]
    return runs[["variant", "seed", *metrics]].astype(dict.fromkeys(metrics, float))


def _find_runs(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (variant, run_dir). The variant is the run's path without its `seed<k>`."""
    for folder in folders:
        for config in sorted(folder.rglob("config.yaml")):
            run_dir = config.parent
            parts = [
                p for p in run_dir.relative_to(folder).parts if not re.fullmatch(r"seed\d+", p)
            ]
            yield "/".join(parts) or run_dir.name, run_dir


def _probe_run(run_dir: Path, config: Config) -> dict[str, float]:
    """Probe a run's newest encoder. The scores are kept in probe.json in the run's folder."""
    checkpoint = list_checkpoints(run_dir / "checkpoints")[-1]
    kept = run_dir / "probe.json"
    if kept.is_file():
        known = json.loads(kept.read_text())
        if known["checkpoint"] == checkpoint.name:
            return known["scores"]
    encoder = load_model(checkpoint)
    scores: dict[str, float] = {}
    for name, data in data_sets(config.data).items():
        index = open_index(data.root, data.index or None, schema=data.schema or None)
        episodes, _ = select_episodes(index, data.selection)
        sides = split_sessions(index, episodes, data.selection.val_fraction)
        of_set = probe_encoder(encoder, index, *sides, data.cameras, data.state_keys)
        scores |= {labelled(name, score): value for score, value in of_set.items()}
    write_text(kept, json.dumps({"checkpoint": checkpoint.name, "scores": scores}))
    return scores


def summarise_runs(runs: pd.DataFrame, first: str = "") -> pd.DataFrame:
    """A table with a row per variant and the columns "seeds", (metric, "mean"), (metric, "sd").

    runs:  a row per run: "variant", "seed", and a column per metric; NaN where a run lacks one
    first: the variant that the others are compared with. It comes first, the others by name.
    "sd" is the sample standard deviation over seeds, NaN for a single seed.
    """
    groups = runs.drop(columns="seed").groupby("variant")
    table = groups.agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
    table.insert(0, ("seeds", ""), groups.size())
    return table.loc[_in_order(table.index, first)]


def _in_order(variants: Iterable[str], first: str) -> list[str]:
    return sorted(variants, key=lambda name: (name != first, name))


def to_markdown(table: pd.DataFrame) -> str:
    """The table of `summarise_runs` in Markdown: "mean ± sd", or "mean" for a single seed."""
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
    """Write a PNG with a column per metric and a row per variant.

    runs, first: as for `summarise_runs`
    Dots are seeds, and bars are their means. A dashed line marks the mean of `first`.
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
    with atomic_path(Path(path)) as partial:
        figure.savefig(partial, dpi=110, format="png")
