"""Build the index of a data set ahead of training, which would otherwise do so when it starts.

    mcr index droid/1.0.1
    mcr index droid/1.0.1 --engine ray
    mcr index droid_tree --index /scratch/droid_tree.index

If there is an index already, it is only checked against its data set. Training looks for the index
beside the data set, or where `data.index=` says.
"""

from __future__ import annotations

import argparse

from mcr.data.index import open_index
from mcr.errors import require_choice
from mcr.runs.processes import EXECUTORS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", help="an RLDS version folder or the root of a tree")
    parser.add_argument(
        "--index", metavar="DIR", help="where to write the index; default: ROOT.index"
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="number of processes; default: all cores"
    )
    parser.add_argument(
        "--engine",
        default="local",
        help=f"{' or '.join(EXECUTORS)}: use this machine's cores (default) or a Ray cluster's",
    )


def run(options: argparse.Namespace) -> None:
    require_choice("--engine", options.engine, EXECUTORS)
    index = open_index(options.root, options.index, options.workers, options.engine)
    print(f"{index.path}: {len(index):,} episodes, {index.info['total_steps']:,} steps")
