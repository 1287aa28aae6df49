"""Describe a data set: a report on the terminal, and a picture.

    mcr inspect droid/1.0.0
    mcr inspect droid_tree --out droid.png
    mcr inspect droid/1.0.1 --verify

PATH is a data set of any format, or an index. The index is built on first use, in one pass over the
data. After that the command takes seconds for a data set of any size. The report ends with the
schema that is assumed, as YAML to start from, and with what is unsure about it.

--verify reads all shards of an RLDS data set instead, compares every record with its checksum, and
names the shards that are damaged or missing. It needs no index.

Exit code: 0 after a report, whatever it says; 2 for bad input. With --verify also 2 if anything is
damaged or missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.commands.data_options import add_data_options
from mcr.data.index import open_index
from mcr.data.inspection import inspect_dataset
from mcr.data.inspection_picture import draw_inspection
from mcr.data.inspection_report import describe
from mcr.data.inspection_schema import describe_schema
from mcr.data.verification import verify_checksums
from mcr.errors import UserError
from mcr.runs.ranges import SEED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a data set, or an index")
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="the picture; default: dataset.png in the index"
    )
    add_data_options(parser)
    parser.add_argument(
        "--verify", action="store_true", help="check every record of an RLDS data set instead"
    )
    parser.add_argument(
        "--seed",
        type=SEED,
        default=0,
        help="seed that chooses the episodes to show; default: %(default)s",
    )


def run(options: argparse.Namespace) -> int:
    if options.verify:
        verification = verify_checksums(options.path)
        print(verification)
        return 2 if verification.complaints else 0
    out = options.out
    if out and (out.suffix != ".png" or not out.parent.is_dir()):
        raise UserError(f"--out {out}: give the name of a .png file in an existing folder")
    index = open_index(options.path, options.index, schema=options.schema)
    found = inspect_dataset(index, options.seed)
    print(f"{describe(found)}\n\n{describe_schema(index)}")
    picture = out or index.path / "dataset.png"
    draw_inspection(found, picture)
    print(f"\npicture: {picture}")
    return 0
