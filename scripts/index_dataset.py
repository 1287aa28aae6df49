#!/usr/bin/env python
"""Build the index of a data set ahead of training, which would otherwise do so when it starts.

    python scripts/index_dataset.py droid/1.0.1
    python scripts/index_dataset.py droid/1.0.1 --engine ray
    python scripts/index_dataset.py droid_tree --index /scratch/droid_tree.index

An index that is there already is only checked against its data set. Training takes it from beside
the data set, or from where `data.index=` says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from mcr.data.index import open_index
from mcr.errors import command_line, require_choice
from mcr.runs.processes import EXECUTORS


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", help="an RLDS version folder or the root of a tree")
    parser.add_argument("--index", metavar="DIR", help="default: ROOT.index")
    parser.add_argument("--workers", type=int, default=0, help="processes; default: all cores")
    parser.add_argument(
        "--engine",
        default="local",
        help=f"{' or '.join(EXECUTORS)}: the cores of this machine (default), or of a Ray cluster",
    )
    arguments = parser.parse_args()
    require_choice("--engine", arguments.engine, EXECUTORS)
    index = open_index(arguments.root, arguments.index, arguments.workers, arguments.engine)
    print(f"{index.path}: {len(index):,} episodes, {index.info['total_steps']:,} steps")


if __name__ == "__main__":
    main()
