#!/usr/bin/env python
"""What the checksums of weights cost: `load_model` of a ResNet-50 with and without them.

    python benchmarks/load_model.py [--rounds 20]

Loads an export (SHA-256 of the whole file) and a file of torch.save (CRC-32 of each entry) in turn,
with and without checking, and prints a row each: median seconds, and the median ratio of the pairs.
The files are in the memory of the system, so reading takes no time. "Processor" counts the seconds
of all threads, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import nn

import mcr
from mcr.models import layouts, tensor_files
from mcr.models.layouts import CHECKPOINT_FORMAT
from mcr.models.preprocessing import Preprocessing
from mcr.runs.processes import processor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(f"{processor()}, torch {torch.__version__}", file=sys.stderr)
    print("| file | seconds | without checks | ratio | processor | without checks | ratio |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_files(Path(folder)).items():
            measure(path)  # imports, and the first reading
            with unchecked():
                measure(path)
            pairs = [measure_pair(path) for _ in range(rounds)]
            print(f"| {name} | {row(pairs, 0)} | {row(pairs, 1)} |")


def write_files(folder: Path) -> dict[str, Path]:
    network = mcr.models.backbones.build_backbone("resnet50")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    described = Preprocessing().encoder_config("resnet50")
    content = {"format": CHECKPOINT_FORMAT, "encoder_config": described}
    torch.save({**content, "encoder": network.state_dict()}, folder / "checkpoint.pt")
    mcr.export_encoder(folder / "checkpoint.pt", folder / "export")
    return {"export": folder / "export", "`.pt`": folder / "checkpoint.pt"}


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Let nothing compare checksums."""
    with (
        patch.object(layouts, "_require_sha256", lambda file, claimed: None),
        patch.object(tensor_files, "_require_checksum", lambda data, entry: None),
    ):
        yield


def measure(path: Path) -> tuple[float, float]:
    """Seconds, and seconds of all threads, to load an encoder."""
    began, began_working = time.perf_counter(), time.process_time()
    mcr.load_model(path)
    return time.perf_counter() - began, time.process_time() - began_working


def measure_pair(path: Path) -> tuple[tuple[float, float], tuple[float, float]]:
    checked = measure(path)
    with unchecked():
        return checked, measure(path)


def row(pairs: list, kind: int) -> str:
    """kind: 0 = seconds, 1 = seconds of all threads"""
    checked, plain = ([pair[side][kind] for pair in pairs] for side in (0, 1))
    ratio = median(a / b for a, b in zip(checked, plain, strict=True))
    return f"{median(checked):.2f} | {median(plain):.2f} | {ratio:.2f}"


if __name__ == "__main__":
    main()
