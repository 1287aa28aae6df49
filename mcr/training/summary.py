"""The summary of a pre-training run: one page, made of what the run's folder holds.

summary.html needs no other file, so that it can be sent or pasted into a report; summary.png holds
its curves. The training loop writes them when a run ends; `mcr report` does at any time.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment

from mcr.runs.atomic import write_text
from mcr.runs.options import flatten
from mcr.training.checkpoint import list_checkpoints
from mcr.training.config import Config
from mcr.training.curves import plot_curves
from mcr.training.run_folder import NUM_FINAL_LINES, final_metrics, load_config, read_metrics


def write_summary(run_dir: str | Path) -> Path:
    """Write summary.html and summary.png into `run_dir`. Returns the path of the page.

    Raises UserError if the folder holds no run.
    """
    run_dir = Path(run_dir)
    config, metrics = load_config(run_dir), read_metrics(run_dir)
    curves = run_dir / "summary.png"
    if len(metrics):
        plot_curves(metrics, curves)
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"number": _number, "base64": _base64}
    page = environment.from_string(_PAGE).render(
        run_dir=run_dir,
        headline=_headline(run_dir, config, metrics),
        curves=curves if len(metrics) else None,
        metrics=_shown_metrics(metrics) if len(metrics) else {},
        num_final_lines=NUM_FINAL_LINES,
        pictures=_pictures(run_dir),
        changes=_changes(config),
        facts=_facts(run_dir),
    )
    write_text(run_dir / "summary.html", page)
    return run_dir / "summary.html"


def _headline(run_dir: Path, config: Config, metrics: pd.DataFrame) -> list[str]:
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
    return facts


def _shown_metrics(metrics: pd.DataFrame) -> dict[str, list[float]]:
    """{name for people: [training, held out, chance]}."""
    table = final_metrics(metrics)
    table = table[~table.index.str.endswith("chance")]
    names = [str(name).replace("/", ": ").replace("_", " ") for name in table.index]
    return dict(zip(names, table[["train", "val", "chance"]].to_numpy().tolist(), strict=True))


def _pictures(run_dir: Path) -> list[Path]:
    """The first and the last picture of each kind, which show what training has changed."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted((run_dir / "pictures").glob("step_*.png")):
        kinds.setdefault(path.stem.split("_", 2)[2], []).append(path)
    return [path for _, paths in sorted(kinds.items()) for path in paths[:1] + paths[1:][-1:]]


def _changes(config: Config) -> list[tuple[str, Any, Any]]:
    """(option, its value, its default) of each option that is not the default."""
    default = flatten(Config())
    return [
        (key, value, default.get(key, ""))
        for key, value in flatten(config).items()
        if value != default.get(key) and key != "run_dir"
    ]


def _facts(run_dir: Path) -> dict[str, list[Any]]:
    """{name: lines} of what the folder says about the run, and how to use its newest checkpoint."""
    facts: dict[str, Any] = {}
    for name in ("launch.json", "versions.json"):
        if (run_dir / name).is_file():
            facts |= json.loads((run_dir / name).read_text())
    if checkpoints := list_checkpoints(run_dir / "checkpoints"):
        newest = checkpoints[-1].resolve()
        facts["checkpoint"] = f"{newest} ({newest.stat().st_size / 1e6:,.0f} MB)"
        facts["use it"] = f'mcr.load_model("{newest}")'
        facts["share it"] = f"mcr export {newest} my_encoder"
    return {key: value if isinstance(value, list) else [value] for key, value in facts.items()}


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


_PAGE = """<!doctype html>
{% macro image(path) %}
<img alt="{{ path.stem }}" src="data:image/png;base64,{{ path | base64 }}">
{% endmacro %}
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ run_dir.name }}</title>
<style>
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
</style>
</head>
<body>
<h1>{{ run_dir }}</h1>
<p>{{ headline | join(" · ") }}</p>
{% if curves %}
<h2>Curves</h2>
{{ image(curves) }}
<h2>Final metrics</h2>
<table>
<tr>
<th></th><th>training (last {{ num_final_lines }} lines)</th><th>held out</th><th>chance</th>
</tr>
{% for name, values in metrics.items() %}
<tr><td>{{ name }}</td>{% for value in values %}<td>{{ value | number }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
<h2>Pictures</h2>
{% for path in pictures %}
{{ image(path) }}
{% else %}
<p>none were drawn (<code>pictures_every</code>)</p>
{% endfor %}
<h2>Changed from the recipe <code>mcr</code></h2>
{% if changes %}
<table>
<tr><th>option</th><th>here</th><th>mcr</th></tr>
{% for option, value, default in changes %}
<tr><td><code>{{ option }}</code></td><td>{{ value }}</td><td>{{ default }}</td></tr>
{% endfor %}
</table>
{% else %}
<p>nothing</p>
{% endif %}
<h2>The run</h2>
<table>
{% for name, lines in facts.items() %}
<tr><td>{{ name }}</td><td><code>{{ lines | join("<br>" | safe) }}</code></td></tr>
{% endfor %}
</table>
</body>
</html>
"""
