"""Summary: what became of a run, on one page made of what its folder holds.

summary.html stands alone (pictures inside), to be read, sent or pasted into a report; summary.png
holds its curves. Written by the training loop when a run ends and by scripts/report.py at any time.
It reads what else is in the folder, never the data set.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import sys
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mcr.errors import UserError
from mcr.runs.atomic import write_text
from mcr.runs.options import flatten
from mcr.runs.processes import processor
from mcr.training.checkpoint import list_checkpoints
from mcr.training.config import RENAMED, Config

KNOWN_CHANCE = {"order_accuracy": 0.5, "r2": 0.0}  # others are logged beside their accuracy
_LAST = 10  # training metrics are noisy: their final value is the mean of so many lines
_SPLITS = {"train": ("training", "C0"), "val": ("held out", "C1")}


def save_launch(run_dir: Path, data: list[str]) -> None:
    """Write launch.json: how and on what the run was started, or continued, the last time.

    data: lines that say what it trains on
    """
    launch = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "folder": os.getcwd(),
        "data": data,
    }
    (run_dir / "launch.json").write_text(json.dumps(launch, indent=1))


def hardware(device: torch.device) -> str:
    """What the run computes on, for people."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({torch.cuda.device_count()} visible)"
    return f"{processor()}, threads: {torch.get_num_threads()}"


# --------------------------------------------------------------------------- reading


def load_config(run_dir: str | Path) -> Config:
    """The config that a run saved. Raises UserError if there is none, or one of another version."""
    path = _file_of_run(run_dir, "config.yaml")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Config), _with_new_names(OmegaConf.load(path))
        )
    except OmegaConfBaseException as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{path}: {what}; another version of mcr wrote it") from error
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config


def _with_new_names(config: Any) -> Any:
    """The same config, with what `RENAMED` lists under its new key."""
    for old, new in RENAMED.items():
        if (value := OmegaConf.select(config, old)) is not None:
            OmegaConf.update(config, new, value)
            parent, _, name = old.rpartition(".")
            del OmegaConf.select(config, parent)[name]
    return config


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """metrics.jsonl as a table: step, split ("train" or "val"), and a column per metric."""
    lines = _file_of_run(run_dir, "metrics.jsonl").read_text().splitlines()
    return pd.DataFrame([json.loads(line) for line in lines], columns=None if lines else ["step"])


def _file_of_run(run_dir: str | Path, name: str) -> Path:
    path = Path(run_dir) / name
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the run_dir of a training run")
    return path


def final_metrics(metrics: pd.DataFrame) -> pd.DataFrame:
    """Per metric (index "<objective>/<name>"): columns "train", "val", "chance"; NaN = not there.

    train: mean of the last 10 lines; val: of the last validation.
    """
    columns = {
        "train": metrics[metrics["split"] == "train"].tail(_LAST).mean(numeric_only=True),
        "val": metrics[metrics["split"] == "val"].tail(1).mean(numeric_only=True),
    }
    table = pd.DataFrame(columns).drop(index="step", errors="ignore")
    table["chance"] = [_chance(name, table) for name in table.index]
    return table


def _chance(name: str, table: pd.DataFrame) -> float:
    objective, _, kind = name.rpartition("/")
    logged = f"{objective}/{kind.replace('accuracy', 'chance')}"
    if kind.endswith("accuracy") and logged in table.index:
        return float(table.loc[logged, ["train", "val"]].mean())
    return KNOWN_CHANCE.get(kind, float("nan"))


def final_accuracies(metrics: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Objective -> (held-out accuracy, chance level) at the last validation; {} without any."""
    table = final_metrics(metrics)
    rows = table[table.index.str.endswith("/accuracy") & table["val"].notna()]
    return {
        str(name).removesuffix("/accuracy"): (float(row["val"]), float(row["chance"]))
        for name, row in rows.iterrows()
    }


# --------------------------------------------------------------------------- curves


def plot_curves(metrics: pd.DataFrame, path: str | Path) -> None:
    """Write a PNG: a column per objective, its loss above its score; the run's health below."""
    names = [column.removesuffix("/loss") for column in metrics if column.endswith("/loss")]
    # placed by hand: a layout engine would take twice the time of drawing
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
    """Two metrics of different units over the same steps."""
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


# --------------------------------------------------------------------------- the page


def write_summary(run_dir: str | Path) -> Path:
    """Write summary.html and summary.png into `run_dir`; returns the page's path.

    Raises UserError if the folder holds no run.
    """
    run_dir = Path(run_dir)
    config, metrics = load_config(run_dir), read_metrics(run_dir)
    sections = [_headline(run_dir, config, metrics)]
    if len(metrics):
        plot_curves(metrics, run_dir / "summary.png")
        sections += [
            _section("Curves", _image(run_dir / "summary.png")),
            _section("Final metrics", _metrics_table(final_metrics(metrics))),
        ]
    sections += [
        _section("Pictures", _pictures(run_dir)),
        _section("Changed from the recipe <code>mcr</code>", _changes_table(config)),
        _section("The run", _facts_table(run_dir)),
    ]
    page = run_dir / "summary.html"
    title = escape(run_dir.name)
    write_text(page, _PAGE.format(title=title, style=_STYLE, body="\n".join(sections)))
    return page


def _headline(run_dir: Path, config: Config, metrics: pd.DataFrame) -> str:
    step = int(metrics["step"].max()) if len(metrics) else 0
    state = "finished" if step >= config.steps else "not finished"
    facts = [
        f"{state}: step {step:,} of {config.steps:,}",
        f"{config.model.backbone}, {config.model.image_size} px",
        f"{config.batch_size} clips a step",
        f"seed {config.seed}",
    ]
    if (run_dir / "non_finite.json").is_file():
        facts.append("a loss or gradient was not finite: see non_finite.json")
    return f"<h1>{escape(str(run_dir))}</h1>\n<p>{escape(' · '.join(facts))}</p>"


def _metrics_table(table: pd.DataFrame) -> str:
    shown = table[~table.index.str.endswith("chance")]
    rows = [
        [escape(str(name).replace("/", ": ").replace("_", " ")), *map(_number, row)]
        for name, row in zip(shown.index, shown[["train", "val", "chance"]].to_numpy(), strict=True)
    ]
    return _table(["", f"training (last {_LAST} lines)", "held out", "chance"], rows)


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _pictures(run_dir: Path) -> str:
    """The first and the last of each kind: what training has changed."""
    pictures = sorted((run_dir / "pictures").glob("step_*.png"))
    if not pictures:
        return "<p>none were drawn (<code>pictures_every</code>)</p>"
    kinds = sorted({path.stem.split("_", 2)[2] for path in pictures})
    chosen = []
    for kind in kinds:
        of_kind = [path for path in pictures if path.stem.endswith(f"_{kind}")]
        chosen += [of_kind[0]] + of_kind[-1:] * (len(of_kind) > 1)
    return "\n".join(_image(path) for path in chosen)


def _changes_table(config: Config) -> str:
    default, own = flatten(Config()), flatten(config)
    rows = [
        [f"<code>{escape(key)}</code>", escape(str(value)), escape(str(default.get(key, "")))]
        for key, value in own.items()
        if value != default.get(key) and key != "run_dir"
    ]
    return _table(["option", "here", "mcr"], rows) if rows else "<p>nothing</p>"


def _facts_table(run_dir: Path) -> str:
    facts: dict[str, Any] = {}
    for name in ("launch.json", "versions.json"):
        if (run_dir / name).is_file():
            facts |= json.loads((run_dir / name).read_text())
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    if checkpoints:
        newest = checkpoints[-1].resolve()
        facts["checkpoint"] = f"{newest} ({newest.stat().st_size / 1e6:,.0f} MB)"
        facts["use it"] = f'mcr.load_model("{newest}")'
        facts["share it"] = f"python scripts/export.py {newest} my_encoder"
    rows = [
        [escape(key), f"<code>{escape(_lines(value)).replace(chr(10), '<br>')}</code>"]
        for key, value in facts.items()
    ]
    return _table(["", ""], rows)


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML already."""
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>\n{f'<tr>{head}</tr>' if any(header) else ''}\n{body}\n</table>"


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}"


_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body>
{body}
</body>
</html>
"""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; }
h2 { font-size: 1.15em; margin: 1.8em 0 .5em; border-bottom: 1px solid #ddd; }
img { display: block; max-width: 100%; margin: .6em 0; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .15em 1.2em .15em 0; }
td:first-child { white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid #bbb; }
tr:nth-child(even) td { background: #f6f6f6; }
code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
"""
