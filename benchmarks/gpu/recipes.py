#!/usr/bin/env python
"""Runs benchmarks/study.py on the data that was carried here, and brings encoders back.

    python benchmarks/gpu/recipes.py --data FOLDER --json FILE [--budget SECONDS] [--bring]
        [--study "--candidates base paper --seeds 0 1 2 -- steps=2000"] [--rehearse]

FOLDER holds archives of benchmarks/gpu/small_data.py: pretrain.tar.xz, which candidates are trained
on, and any others, which they are judged on beside the embedded sample. No new training begins
after the budget. The table is kept in FILE, study.csv beside it, and, with --bring, the encoders as
encoders.tar.xz in parts of 15 MiB, their weights rounded to 16 bits:

    cat encoders.tar.xz.* | tar xJ
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other benchmarks

from loader import hardware
from safetensors.torch import load_file, save_file

from mcr.errors import UserError, command_line
from mcr.models.layouts import CONFIG_NAME, WEIGHTS_NAME
from mcr.models.tensor_files import sha256
from mcr.runs.atomic import write_text

BENCHMARKS = Path(__file__).resolve().parents[1]
SAMPLE = BENCHMARKS.parent / "resources/sample_droid/1.0.0"
PRETRAIN = "pretrain.tar.xz"
PART_BYTES = 15 * 2**20


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of archives")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=480, help="seconds, then no further run")
    parser.add_argument("--study", default="", help="arguments of benchmarks/study.py")
    parser.add_argument("--bring", action="store_true", help="pack the encoders")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, two candidates")
    arguments = parser.parse_args()
    archives = find_archives(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        trees = {path.name: Path(folder) / path.name.split(".")[0] for path in archives}
        for path in archives:
            run("gpu/small_data.py", "expand", path, trees[path.name])
        pretrain = trees.pop(PRETRAIN)
        judge = [SAMPLE, *trees.values()]
        for data in (pretrain, *judge):
            subprocess.run([sys.executable, "-m", "mcr.cli", "index", data], check=True)
        out = Path(folder) / "study"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        command = [out, "--data", pretrain, "--judge", *judge, "--device", device]
        command += ["--budget", str(arguments.budget), *shlex.split(arguments.study)]
        if arguments.rehearse:
            command += [] if "--" in command else ["--candidates", "base", "paper", "--"]
            command += ["steps=2", "batch_size=4", "model.image_size=32", "val_clips=4"]
        failed = ""
        try:
            run("study.py", *command)
        except UserError as error:  # what was finished before is brought back first
            failed = str(error)
        results = arguments.json.parent
        for name in ("study.csv", "study.md"):
            if (out / name).exists():
                shutil.copyfile(out / name, results / name)
        if arguments.bring:
            bring(out, results)
        table = (out / "study.md").read_text() if (out / "study.md").exists() else ""
        write_text(arguments.json, json.dumps({"hardware": hardware(), "table": table}, indent=1))
        if failed:
            raise UserError(failed)


def find_archives(folder: Path) -> list[Path]:
    archives = sorted(folder.glob("*.tar.xz"))
    if PRETRAIN not in (path.name for path in archives):
        raise UserError(
            f"--data {folder}: must hold {PRETRAIN}; benchmarks/gpu/small_data.py makes it"
        )
    return archives


def run(script: str, *arguments: object) -> None:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    if subprocess.run(command).returncode:
        raise UserError(f"{script} ended with an error: see above")


def bring(study: Path, results: Path) -> None:
    """Pack the encoders and their judgements in parts that are small enough to be sent."""
    for path in (study / "encoders").rglob(WEIGHTS_NAME):
        tensors = load_file(path)
        rounded = {
            name: tensor.half().float() if tensor.ndim > 1 else tensor
            for name, tensor in tensors.items()
        }
        save_file(rounded, path, metadata={"format": "pt"})
        config = json.loads((path.parent / CONFIG_NAME).read_text())
        config["mcr"]["weights_sha256"] = sha256(path)
        write_text(path.parent / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    archive = results / "encoders.tar.xz"
    subprocess.run(
        f"set -o pipefail; tar c --exclude ./runs -C {study} . | xz -T0 -3 |"
        f" split -b {PART_BYTES} -d - {archive}.",
        shell=True,
        executable="/bin/bash",
        check=True,
    )


if __name__ == "__main__":
    main()
