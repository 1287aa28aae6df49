"""Describe a data set: a report on the terminal, and a picture.

    mcr inspect droid/1.0.0
    mcr inspect droid_tree --out droid.png

PATH is an RLDS version folder, a PNG/pickle tree, or the index of one. The index is built on first
use, in one pass over the data. After that the command takes seconds for a data set of any size.

Exit code: 0 after a report, whatever it says; 2 for bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.data.inspection import inspect_dataset, open_dataset
from mcr.data.inspection_picture import draw_inspection
from mcr.data.inspection_report import describe
from mcr.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="shards, a tree or an index")
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="the picture; default: dataset.png in the index"
    )
    parser.add_argument(
        "--index", type=Path, metavar="DIR", help="where the index lies; default: PATH.index"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed that chooses the episodes to show; default: %(default)s",
    )


def run(options: argparse.Namespace) -> None:
    out = options.out
    if out and (out.suffix != ".png" or not out.parent.is_dir()):
        raise UserError(f"--out {out}: give the name of a .png file in an existing folder")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more")
    index = open_dataset(options.path, options.index)
    found = inspect_dataset(index, options.seed)
    print(describe(found))
    picture = out or index.path / "dataset.png"
    draw_inspection(found, picture)
    print(f"\npicture: {picture}")
