"""Manipulation centricity of several encoders on several tasks: a table, pictures, a correlation.

    <folder>/centricity.csv  centricity.md   a row per encoder and task
             sweep.png                       centricity over all thresholds of the map
             <task>.png                      maps and masks of some frames

Called by `mcr centricity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr

from mcr.errors import UserError, nearest
from mcr.evaluation.centricity import (
    THRESHOLD,
    THRESHOLDS,
    Saliency,
    baselines,
    find_saliency,
    sweep,
)
from mcr.evaluation.contestants import WITHOUT_PROPRIOCEPTION, named_encoders
from mcr.evaluation.masked_pictures import MaskedPictures
from mcr.models.loading import load_model
from mcr.runs.atomic import atomic_path, write_text

_COLUMNS = 6


def compare_centricity(
    encoders: Sequence[str],
    tasks: Iterable[MaskedPictures],
    folder: str | Path,
    threshold: float = THRESHOLD,
    results: str | Path | None = None,
    device: str | None = None,
) -> str:
    """Measure the centricity of encoders on tasks, and write the table and pictures to `folder`.

    encoders: "NAME=SOURCE" or "SOURCE", what `load_model` reads; [] = all that `results` names
    results:  results.csv of an evaluation in simulation. The correlation of centricity with its
              success rates is added.
    device:   of the encoders; None = the CPU
    Returns the table in Markdown. Raises UserError if no encoder is named, and as `find_saliency`,
    `sweep` and `correlate_with_success`.
    """
    folder = Path(folder)
    success = pd.read_csv(results, keep_default_na=False) if results else None
    if encoders:
        sources = named_encoders(encoders)
    elif success is not None:
        # Not proprioception alone or from scratch, and each encoder once.
        twice = success["encoder"].str.endswith(f" {WITHOUT_PROPRIOCEPTION}")
        seeing = success[(success["weights"] != "") & ~twice]
        sources = dict(zip(seeing["encoder"], seeing["source"], strict=True))
    else:
        raise UserError("no encoder: name one or more, or give --results with encoders in it")
    loaded = {name: load_model(source, device=device) for name, source in sources.items()}
    rows: list[dict] = []
    curves: dict[str, list[np.ndarray]] = {name: [] for name in loaded}
    folder.mkdir(parents=True, exist_ok=True)
    for frames in tasks:
        saliency = {name: find_saliency(encoder, frames) for name, encoder in loaded.items()}
        for name, one in saliency.items():
            rows.append(_table_row(name, frames.task, one, threshold))
            curves[name].append(sweep(one).mean(axis=0))
        draw_saliency(saliency, folder / f"{frames.task.replace('/', '_')}.png", threshold)
    draw_sweep({name: np.mean(each, axis=0) for name, each in curves.items()}, folder / "sweep.png")

    table = pd.DataFrame(rows)
    with atomic_path(folder / "centricity.csv") as partial:
        table.to_csv(partial, index=False)
    text = to_markdown(table, threshold)
    if success is not None:
        text += "\n" + _describe_correlation(table, success, str(results))
    write_text(folder / "centricity.md", text)
    return text


def _table_row(encoder: str, task: str, saliency: Saliency, threshold: float) -> dict:
    scores = {"centricity": sweep(saliency, [threshold])[:, 0], **baselines(saliency, threshold)}
    return {
        "encoder": encoder,
        "task": task,
        "frames": len(saliency.maps),
        "unseen": saliency.num_unseen,
        **{name: float(values.mean()) for name, values in scores.items()},
    }


def _describe_correlation(table: pd.DataFrame, results: pd.DataFrame, where: str) -> str:
    centricity = table.groupby("encoder")["centricity"].mean().to_dict()
    found = correlate_with_success(centricity, results, where)
    return (
        f"Correlation with success over {len(centricity)} encoders: "
        f"Pearson {found['pearson']:.2f} (p {found['pearson_p']:.2g}), "
        f"Spearman {found['spearman']:.2f} (p {found['spearman_p']:.2g})\n"
    )


def to_markdown(table: pd.DataFrame, threshold: float) -> str:
    """A table with a row per encoder and task, then each encoder's mean over tasks.

    table: "encoder", "task", "frames", "unseen", "centricity", "whole", "centre", "random"
    """
    numbers = ["centricity", "whole", "centre", "random"]
    means = table.groupby("encoder", sort=False)[numbers].mean()
    lines = [
        f"Jaccard index of maps that reach {threshold:g} with masks of gripper and objects\n",
        f"| encoder | task | frames | {' | '.join(numbers)} |",
        "|---|---|---|" + "---|" * len(numbers),
    ]
    for _, row in table.iterrows():
        cells = " | ".join(f"{row[name]:.3f}" for name in numbers)
        lines.append(f"| {row['encoder']} | {row['task']} | {row['frames']} | {cells} |")
    for encoder, row in means.iterrows():
        cells = " | ".join(f"{row[name]:.3f}" for name in numbers)
        lines.append(f"| {encoder} | **mean of tasks** | | {cells} |")
    return "\n".join(lines) + "\n"


def correlate_with_success(
    centricity: dict[str, float], results: pd.DataFrame, where: str = "results"
) -> dict[str, float]:
    """Correlation of centricity with success rates: "pearson", "spearman" and their p-values,
    "pearson_p" and "spearman_p".

    centricity: name of the encoder -> its mean centricity
    results:    rows with "encoder", "task", "successes", "trials", also of other encoders. An
                encoder's success rate is the mean over its tasks, which must be the same for all.
    where:      names `results` in error messages
    Raises UserError for fewer than three encoders, unknown ones, or numbers that are all equal.
    """
    if lacking := {"encoder", "task", "successes", "trials"} - set(results.columns):
        raise UserError(f"{where}: lacks the columns {', '.join(sorted(lacking))}")
    known = set(results["encoder"])
    if unknown := sorted(set(centricity) - known):
        raise UserError(f"{where}: has no encoder {unknown[0]!r}{nearest(unknown[0], known)}")
    success = _success_rates(results[results["encoder"].isin(list(centricity))], where)
    ones, others = zip(*((centricity[name], success[name]) for name in centricity), strict=True)
    if len(ones) < 3:
        raise UserError(f"{where}: a correlation needs three encoders or more, not {len(ones)}")
    for what, values in (("centricities", ones), ("success rates", others)):
        if len(set(values)) == 1:
            raise UserError(f"{where}: all {what} are {values[0]:g}: nothing correlates with that")
    pearson, spearman = pearsonr(ones, others), spearmanr(ones, others)
    return {
        "pearson": float(pearson.statistic),
        "pearson_p": float(pearson.pvalue),
        "spearman": float(spearman.statistic),
        "spearman_p": float(spearman.pvalue),
    }


def _success_rates(results: pd.DataFrame, where: str) -> dict[str, float]:
    """Name of the encoder -> its success rate, the mean over tasks."""
    sums = results.groupby(["encoder", "task"])[["successes", "trials"]].sum()
    rates = (sums["successes"] / sums["trials"]).unstack("task")
    if rates.isna().any(axis=None):
        encoder, task = rates.stack(future_stack=True).isna().idxmax()
        raise UserError(f"{where}: {encoder} was not evaluated on {task}, as others were")
    return rates.mean(axis=1).to_dict()


# --------------------------------------------------------------------------- pictures


def draw_saliency(
    saliency: dict[str, Saliency], path: str | Path, threshold: float = THRESHOLD
) -> None:
    """Write a PNG with a row per encoder: frames with the map and outlines of map and mask.

    saliency: name of the encoder -> its saliency on the same frames
    """
    columns, side = min(_COLUMNS, *(len(one.maps) for one in saliency.values())), 1.9
    figure = Figure(
        figsize=(side * columns, (side + 0.25) * len(saliency) + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(saliency), columns, squeeze=False)
    for row, (name, one) in zip(axes, saliency.items(), strict=True):
        scores = sweep(one, [threshold])[:, 0]
        places = np.linspace(0, len(scores) - 1, columns).astype(int)
        for cell, place in zip(row, places.tolist(), strict=True):
            cell.imshow(one.inputs[place])
            cell.imshow(one.maps[place], cmap="inferno", alpha=0.5, vmin=0, vmax=1)
            for shape, colour in ((one.masks, "lime"), (one.maps >= threshold, "white")):
                if shape[place].any() and not shape[place].all():
                    cell.contour(shape[place], levels=[0.5], colors=colour, linewidths=1)
            cell.set(xticks=[], yticks=[])
            cell.set_title(f"{scores[place]:.2f}", fontsize=8)
        row[0].set_ylabel(f"{_label(name)}\n{scores.mean():.3f}", fontsize=8)
    figure.suptitle(
        f"Grad-CAM, white: reaches {threshold:g}; green: gripper and objects; numbers: Jaccard",
        fontsize=9,
    )
    with atomic_path(Path(path)) as partial:
        figure.savefig(partial, dpi=110, format="png")


def draw_sweep(curves: dict[str, np.ndarray], path: str | Path) -> None:
    """Write a PNG of centricity over THRESHOLDS.

    curves: name of the encoder -> float [number of THRESHOLDS]
    """
    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(THRESHOLDS, curve, marker=".", label=_label(name))
    axes.set(xlabel="threshold of the map", ylabel="manipulation centricity")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_path(Path(path)) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _label(name: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(name).parts[-2:])
