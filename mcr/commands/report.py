"""Summarise a training run on one page, and draw a contact sheet of its clips.

    mcr report runs/mcr

The page is RUN_DIR/summary.html, and summary.png holds its curves. Training writes both when it
ends; this command also works while training is running. The contact sheet shows clips as the loader
draws them, with their crops; there is one for each data set of a mixture.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from mcr.data.contact_sheet import draw_contact_sheet
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader
from mcr.data.mixture import data_sets
from mcr.data.selection import select_episodes
from mcr.training.run_folder import final_accuracies, load_config, read_metrics
from mcr.training.summary import write_summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="the run's folder")


def run(options: argparse.Namespace) -> None:
    run_dir = options.run_dir
    summary = write_summary(run_dir)
    for name, (accuracy, chance) in final_accuracies(read_metrics(run_dir)).items():
        print(f"held-out accuracy of {name}: {accuracy:.1%} (chance {chance:.1%})")
    print(f"summary: {summary}")

    config = load_config(run_dir)
    for name, data in data_sets(config.data).items():
        index = open_index(data.root, data.index or None, schema=data.schema or None)
        episodes, _ = select_episodes(index, data.selection)
        data = replace(data, workers=0)
        clips = ClipDataset(index, episodes, data, config.seed)
        batch = next(iter(ClipLoader(clips, data, batch_size=6)))
        path = run_dir / (f"contact_sheet_{name}.png" if name else "contact_sheet.png")
        draw_contact_sheet(batch, path)
        print(f"contact sheet: {path}")
