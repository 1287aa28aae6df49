#!/usr/bin/env python
"""Scores of encoders on demonstrations of the sealed tasks, where success rates say nothing.

    python benchmarks/sealed_demonstrations.py OUT mcr/seed0=A mcr/seed1=B untrained/seed0=C \\
        [--tasks assembly bin-picking] [--figure FIGURE.png]

Policies that learn from pictures fail at these tasks with varied looks (resources/evaluation.md).
What features tell of the scene can be measured nevertheless: R2 of the expert's action, and of the
robot's state, by a small network on demonstrations that are held out. Encoders called NAME/seed0,
NAME/seed1, ... are pretraining seeds of one recipe. Type the same command again to continue, or
with other encoders to add rows.

    OUT/demonstrations/TASK.hdf5   100 of the scripted expert
        judged/TASK/NAME.csv       the scores of an encoder, by benchmarks/judge.py
        results.csv, results.md    all of them, and the table that is printed
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd

from mcr.errors import UserError, command_line, require_choice
from mcr.evaluation.contestants import named_encoders
from mcr.evaluation.task_sets import DEMONSTRATED
from mcr.runs.atomic import atomic_path, write_text

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
TASKS = {task.partition("/")[2]: task for task in DEMONSTRATED}
COUNT = 100
PICTURE_SIZE = 128


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("encoders", nargs="+", metavar="NAME=ENCODER")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    encoders = named_encoders(options.encoders)
    for task in options.tasks:
        require_choice("task", task, TASKS)
        demonstrations = record(options.out, task)
        for name, source in encoders.items():
            scores = options.out / "judged" / task / f"{name.replace('/', '_')}.csv"
            if not scores.exists():
                print(f"{task}: {name}", flush=True)
                judge = [ROOT / "benchmarks/judge.py", source, scores, "--name", name]
                run(*judge, "--device", options.device, "--data", demonstrations)
    paths = sorted((options.out / "judged").rglob("*.csv"))
    rows = pd.concat([pd.read_csv(path).assign(task=path.parent.name) for path in paths])
    rows = rows[rows["task"].isin(options.tasks)].drop(columns=["data", "source"])
    with atomic_path(options.out / "results.csv") as partial:
        rows.to_csv(partial, index=False, float_format="%.4f", lineterminator="\n")
    write_text(options.out / "results.md", table(rows))
    print(f"\n{table(rows)}")
    if options.figure:
        draw(rows, options.figure)


def record(out: Path, task: str) -> Path:
    """The demonstrations of a task, which are recorded if they do not exist."""
    path = out / "demonstrations" / f"{task}.hdf5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        looks = ["--looks", "varied", "--picture-size", PICTURE_SIZE]
        run("-m", "mcr.cli", "record", TASKS[task], path, "--count", COUNT, *looks)
    return path


def run(*command: object) -> None:
    if subprocess.run([sys.executable, *map(str, command)]).returncode:
        raise UserError(f"{command[0]} ended with an error: see above")


def recipes(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """R2 of each pretraining seed of each recipe: index (recipe, encoder), a column per task."""
    chosen = rows[rows["score"] == score]
    recipe = chosen["encoder"].str.replace(r"/seed\d+$", "", regex=True)
    values = chosen.assign(recipe=recipe).pivot_table(
        index=["recipe", "encoder"], columns="task", values="value"
    )
    return values.assign(mean=values.mean(axis=1, skipna=False))


def table(rows: pd.DataFrame) -> str:
    """Means over pretraining seeds, with their range, in Markdown."""
    lines = []
    for score in rows["score"].unique():
        values = recipes(rows, score)
        means = values.groupby("recipe").mean().sort_values("mean", ascending=False)
        lines += [
            f"| {score} | seeds | {' | '.join(means.columns)} |",
            f"|---|---|{'---|' * len(means.columns)}",
        ]
        for name, mean in means.iterrows():
            of_seeds = values.loc[name]
            ranges = zip(mean, of_seeds.min(), of_seeds.max(), strict=True)
            cells = [
                f"{value:.2f}" + (f" ({low:.2f} to {high:.2f})" if len(of_seeds) > 1 else "")
                for value, low, high in ranges
            ]
            lines.append(f"| {name} | {len(of_seeds)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """R2 of the action: a bar for each recipe and task, and a dot for each pretraining seed."""
    values = recipes(rows, "action_mlp")
    means = values.groupby("recipe").mean().sort_values("mean", ascending=False)
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(means)
    for place, name in enumerate(means.index):
        left = [column + (place - len(means) / 2) * width for column in range(means.shape[1])]
        bars = axes.bar(left, means.loc[name], width, label=name, align="edge")
        for seed in values.loc[name].itertuples(index=False):
            middles = [bar.get_x() + width / 2 for bar in bars]
            axes.plot(middles, seed, ".", color="black", markersize=3)
    axes.set_xticks(range(means.shape[1]), means.columns)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("R² of the expert's action")
    figure.legend(loc="outside upper center", fontsize="small", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
