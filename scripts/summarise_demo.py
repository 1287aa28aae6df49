#!/usr/bin/env python
"""What came in and out of every stage of `scripts/demo.sh`, in one table."""

import argparse
from pathlib import Path

import pandas as pd

from mcr.data.index import Index
from mcr.data.sources.rlds import RldsSource
from mcr.data.tfrecord import read_records
from mcr.errors import command_line
from mcr.training.run_folder import final_accuracies, final_metrics, read_metrics


def count_folders(root: Path) -> int:
    return sum(path.is_dir() for path in root.iterdir()) if root.is_dir() else 0


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the demo's folder")
    parser.add_argument("shards", type=Path, help="the RLDS data set that it began with")
    arguments = parser.parse_args()
    out = arguments.output

    shards = RldsSource(arguments.shards).parts()
    report = pd.read_csv(out / "tree.report.csv")
    index = Index(out / "tree.index")
    metrics = read_metrics(out / "run")
    losses = metrics[metrics["split"] == "train"]["loss"]
    num_records = sum(1 for shard in shards for _ in read_records(shard.path))
    rows = [
        ("shards", f"{len(shards)} shards, {num_records} episodes"),
        ("extract", f"{num_records} in, {len(report)} out"),
        ("clean", f"{len(report)} in, {count_folders(out / 'tree')} out, "
                  f"{count_folders(out / 'quarantine')} in quarantine"),
        ("index", f"{len(index)} episodes, {index.info['total_steps']} steps"),
        ("train", f"{int(metrics['step'].max())} steps, "
                  f"loss {losses.head(3).mean():.2f} -> {losses.tail(3).mean():.2f}"),
    ]  # fmt: skip
    for name, (accuracy, chance) in final_accuracies(metrics).items():
        rows.append(("", f"held-out accuracy of {name}: {accuracy:.1%} (chance {chance:.1%})"))
    r2 = final_metrics(metrics).loc["action_prediction/r2", "val"]
    rows.append(("", f"held-out R² of action_prediction: {r2:.3f} (0 = the mean action)"))
    rows.append(("encoder", f"{out / 'encoder'}: mcr.load_model({str(out / 'encoder')!r})"))
    rows.append(("summary", f"{out / 'run/summary.html'}: curves, numbers, pictures on one page"))
    for stage, text in rows:
        print(f"  {stage:9} {text}")


if __name__ == "__main__":
    main()
