"""Compare training runs of several variants and seeds in one table and one picture.

    mcr compare runs/ablation
    mcr compare runs/ablation --first full --no-probe

Variants are compared by held-out accuracies and by probes of their frozen encoders. A probe's R²
says how well something can be read linearly from the features of held-out sessions: 1 is perfect,
0 no better than the mean. Losses of different variants cannot be compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.evaluation.comparison import compare_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", help="runs, or folders of runs")
    parser.add_argument(
        "--out", type=Path, help="folder of comparison.*; default: the first of FOLDERS"
    )
    parser.add_argument(
        "--first",
        default="full",
        help="the variant that others are compared with; default: %(default)s",
    )
    parser.add_argument(
        "--no-probe", action="store_true", help="compare accuracies only, which needs no data"
    )


def run(options: argparse.Namespace) -> None:
    out = options.out or options.folders[0]
    print(compare_runs(options.folders, out, options.first, not options.no_probe))
    print(f"written: {out / 'comparison.csv'}, comparison.md, comparison.png")
