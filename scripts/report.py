#!/usr/bin/env python
"""Pictures and final numbers of a training run: curves.png and contact_sheet.png in its folder."""

import argparse
from pathlib import Path

from omegaconf import OmegaConf

from mcr.analysis.contact_sheet import draw_contact_sheet
from mcr.analysis.curves import final_accuracies, plot_curves, read_metrics
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader
from mcr.data.selection import select_episodes
from mcr.errors import UserError, command_line
from mcr.training.config import Config


def load_config(run_dir: Path) -> Config:
    """The config that a run saved. Raises UserError if there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the run_dir of a training run")
    config = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
    )
    assert isinstance(config, Config)
    return config


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    run_dir = parser.parse_args().run_dir

    config = load_config(run_dir)
    config.data.workers = 0
    metrics = read_metrics(run_dir)
    plot_curves(metrics, run_dir / "curves.png")
    index = open_index(config.data.root, config.data.index or None)
    rows, _ = select_episodes(index, config.data.selection)
    clips = ClipDataset(index, rows, config.data, config.seed)
    batch = next(iter(ClipLoader(clips, config.data, batch_size=6)))
    draw_contact_sheet(batch, run_dir / "contact_sheet.png")

    for name, (accuracy, chance) in final_accuracies(metrics).items():
        print(f"held-out accuracy of {name}: {accuracy:.1%} (chance {chance:.1%})")
    print(f"pictures: {run_dir / 'curves.png'}, {run_dir / 'contact_sheet.png'}")


if __name__ == "__main__":
    main()
