#!/usr/bin/env python
"""Gathers training runs into one table and one picture: what did each variant do, over its seeds?

Variants are compared by held-out accuracies and by probes of their frozen encoders (R² of what can
be read from them linearly on held-out sessions: 1 perfect, 0 blind). Losses do not compare.
"""

import argparse
from pathlib import Path

from mcr.errors import command_line
from mcr.evaluation.comparison import compare_runs


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="runs, or folders of runs")
    parser.add_argument("--out", type=Path, help="folder for comparison.*; default: the first one")
    parser.add_argument("--first", default="full", help="the variant that others are compared with")
    parser.add_argument("--no-probe", action="store_true", help="accuracies only, without the data")
    arguments = parser.parse_args()
    out = arguments.out or arguments.folders[0]
    print(compare_runs(arguments.folders, out, arguments.first, not arguments.no_probe))
    print(f"written: {out / 'comparison.csv'}, comparison.md, comparison.png")


if __name__ == "__main__":
    main()
