#!/usr/bin/env python
"""Gathers training runs into one table and one picture: what did each variant do, over its seeds?

Variants are compared by held-out accuracies and by probes of their frozen encoders (R² of what can
be read from them linearly on held-out sessions: 1 perfect, 0 blind). Losses do not compare.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mcr.data.index import open_index
from mcr.data.selection import select_episodes, split_sessions
from mcr.errors import UserError, command_line
from mcr.evaluation.comparison import plot_comparison, summarise_runs, to_markdown
from mcr.evaluation.probes import probe_encoder
from mcr.models.loading import load_model
from mcr.training.checkpoint import list_checkpoints
from mcr.training.config import Config
from mcr.training.run_folder import final_metrics, load_config, read_metrics

MEASURES = {
    "dynamics_alignment/accuracy": "dynamics accuracy",
    "time_contrastive/accuracy": "time accuracy",
    "action_prediction/r2": "action head R²",
    "embedding/effective_rank": "effective rank",
}


def find_runs(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """(variant, run_dir): the variant is the run's path without `seed<k>`."""
    for folder in folders:
        for config in sorted(folder.rglob("config.yaml")):
            run_dir = config.parent
            parts = [
                p for p in run_dir.relative_to(folder).parts if not re.fullmatch(r"seed\d+", p)
            ]
            yield "/".join(parts) or run_dir.name, run_dir


def probe_run(run_dir: Path, config: Config) -> dict[str, float]:
    """Probes of a run's newest encoder; kept in its probe.json."""
    checkpoint = list_checkpoints(run_dir / "checkpoints")[-1]
    kept = run_dir / "probe.json"
    if kept.is_file():
        known = json.loads(kept.read_text())
        if known["checkpoint"] == checkpoint.name:
            return known["scores"]
    index = open_index(config.data.root, config.data.index or None)
    episodes, _ = select_episodes(index, config.data.selection)
    training, held_out = split_sessions(index, episodes, config.data.selection.val_fraction)
    data = config.data
    encoder = load_model(checkpoint)
    scores = probe_encoder(encoder, index, training, held_out, data.cameras, data.state_keys)
    kept.write_text(json.dumps({"checkpoint": checkpoint.name, "scores": scores}))
    return scores


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, help="folder for comparison.*; default: the first one")
    parser.add_argument("--first", default="full", help="the variant that others are compared with")
    parser.add_argument("--no-probe", action="store_true", help="accuracies only, without the data")
    arguments = parser.parse_args()
    out = arguments.out or arguments.folders[0]

    rows = []
    for variant, run_dir in find_runs(arguments.folders):
        config = load_config(run_dir)
        held_out = final_metrics(read_metrics(run_dir))["val"]
        row = {"variant": variant, "seed": config.seed}
        row |= {name: held_out.get(metric) for metric, name in MEASURES.items()}
        if not arguments.no_probe:
            print(f"probing {run_dir}")
            row |= {f"{k} probe R²": v for k, v in probe_run(run_dir, config).items()}
        rows.append(row)
    if not rows:
        raise UserError(f"{arguments.folders[0]}: no training run is in it")
    runs = pd.DataFrame(rows)
    metrics = [name for name in runs.columns[2:] if runs[name].notna().any()]
    runs = runs[["variant", "seed", *metrics]].astype(dict.fromkeys(metrics, float))

    out.mkdir(parents=True, exist_ok=True)
    table = to_markdown(summarise_runs(runs, arguments.first))
    runs.to_csv(out / "comparison.csv", index=False)
    (out / "comparison.md").write_text(table)
    plot_comparison(runs, out / "comparison.png", metrics, arguments.first)
    print(table)
    print(f"written: {out / 'comparison.csv'}, comparison.md, comparison.png")


if __name__ == "__main__":
    main()
