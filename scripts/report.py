#!/usr/bin/env python
"""A training run on one page: summary.html and summary.png, and a contact sheet of its clips."""

import argparse
from dataclasses import replace
from pathlib import Path

from mcr.data.contact_sheet import draw_contact_sheet
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader
from mcr.data.selection import select_episodes
from mcr.errors import command_line
from mcr.training.run_folder import final_accuracies, load_config, read_metrics
from mcr.training.summary import write_summary


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    run_dir = parser.parse_args().run_dir

    summary = write_summary(run_dir)
    for name, (accuracy, chance) in final_accuracies(read_metrics(run_dir)).items():
        print(f"held-out accuracy of {name}: {accuracy:.1%} (chance {chance:.1%})")
    print(f"summary: {summary}")

    config = load_config(run_dir)
    index = open_index(config.data.root, config.data.index or None)
    episodes, _ = select_episodes(index, config.data.selection)
    data = replace(config.data, workers=0)
    clips = ClipDataset(index, episodes, data, config.seed)
    draw_contact_sheet(
        next(iter(ClipLoader(clips, data, batch_size=6))), run_dir / "contact_sheet.png"
    )
    print(f"contact sheet: {run_dir / 'contact_sheet.png'}")


if __name__ == "__main__":
    main()
