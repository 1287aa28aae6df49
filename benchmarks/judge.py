#!/usr/bin/env python
"""Scores of one encoder on development data: a part of the offline suite, in seconds on a GPU.

    python benchmarks/judge.py ENCODER SCORES.csv --data droid/1.0.1 lift.hdf5 [--device cuda]

The scores are R2 of the state and of the action by a small network on held-out sessions, as
`state_mlp` and `action_mlp` of `mcr evaluate --suite offline`. Called by benchmarks/study.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from mcr.data.index import open_index
from mcr.errors import command_line
from mcr.evaluation.offline import mlp_answers, probe_score
from mcr.evaluation.recorded_frames import OfflineConfig, read_frames
from mcr.models.encoder import Encoder
from mcr.models.loading import load_model
from mcr.runs.atomic import atomic_path

TARGETS = ("state", "action")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", help="what mcr.load_model reads")
    parser.add_argument("scores", type=Path, help="the table to write")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--name", default="", help="of the encoder in the table")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    encoder = load_model(options.encoder, options.device)
    about = {"encoder": options.name or options.encoder, "source": options.encoder}
    rows = [
        {**about, "data": name_of(data), **row}
        for data in options.data
        for row in scores(encoder, data, options.device)
    ]
    options.scores.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.scores) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)


def scores(encoder: Encoder, data: str, device: str) -> list[dict[str, object]]:
    """A row for each target: its R2 with a 95% interval."""
    config = OfflineConfig()
    training, held_out = read_frames(encoder, open_index(data), config)
    rows = []
    for target in TARGETS:
        seeds = range(config.num_seeds)
        answers = [mlp_answers(training, held_out, target, seed, device) for seed in seeds]
        value, low, high = probe_score(
            training, held_out, target, answers, np.random.default_rng(0)
        )
        rows.append({"score": f"{target}_mlp", "value": value, "low": low, "high": high})
    return rows


def name_of(data: str) -> str:
    """A data set's folder, and the one above if it is a version: "sample_droid" of ".../1.0.0"."""
    path = Path(data).resolve()
    return path.parent.name if path.name[0].isdigit() else path.stem


if __name__ == "__main__":
    main()
