#!/usr/bin/env python
"""What is this data set? A report on the terminal, and a picture of it.

    python scripts/inspect_dataset.py droid/1.0.0
    python scripts/inspect_dataset.py droid_tree --out droid.png

PATH is an RLDS version folder, a PNG/pickle tree, or the index of one. The index is built on first
use, in one pass over the data; after that, and for any size, this takes seconds.

Exit code: 0 after a report, whatever it says; 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from mcr.data.inspection import inspect_dataset, open_dataset
from mcr.data.inspection_picture import draw_inspection
from mcr.data.inspection_report import describe
from mcr.errors import UserError, command_line


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="shards, tree or index")
    parser.add_argument("--out", type=Path, metavar="PNG", help="default: dataset.png in the index")
    parser.add_argument("--index", type=Path, metavar="DIR", help="default: PATH.index")
    parser.add_argument(
        "--seed", type=int, default=0, help="which episodes are shown; default: %(default)s"
    )
    return parser.parse_args()


@command_line
def main() -> None:
    arguments = parse_arguments()
    out = arguments.out
    if out and (out.suffix != ".png" or not out.parent.is_dir()):
        raise UserError(f"--out {out}: give the name of a .png file in an existing folder")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give 0 or more")
    index = open_dataset(arguments.path, arguments.index)
    found = inspect_dataset(index, arguments.seed)
    print(describe(found))
    picture = out or index.path / "dataset.png"
    draw_inspection(found, picture)
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    main()
