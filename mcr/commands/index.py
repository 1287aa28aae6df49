"""Build the index of a data set ahead of training, which would otherwise do so when it starts.

    mcr index droid/1.0.1
    mcr index droid/1.0.1 --engine ray
    mcr index my_robot.hdf5 --schema my_robot.yaml --pack
    mcr index droid_tree --index /scratch/droid_tree.index

If there is an index already, it is only checked against its data set. --pack also makes the pack
that training needs of videos, HDF5 and parquet; a pack that was interrupted is continued. Training
looks for the index beside the data set, or where `data.index=` says.
"""

from __future__ import annotations

import argparse

from mcr.commands.data_options import add_data_options
from mcr.data.index import open_index
from mcr.data.pack import PackOptions, open_pack
from mcr.runs.processes import EXECUTORS
from mcr.runs.ranges import WORKERS_OR_ALL, choice, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", help="a data set of any format")
    add_data_options(parser)
    parser.add_argument(
        "--pack",
        action="store_true",
        help="decode all pictures once, if the format needs it, and store them as JPEGs",
    )
    parser.add_argument(
        "--quality",
        type=whole(1, 100),
        default=PackOptions.quality,
        help="of the JPEGs of a pack; default: %(default)s",
    )
    parser.add_argument(
        "--side",
        type=whole(0),
        default=PackOptions.side,
        help="longest that the shorter side of a packed picture may be, in pixels; 0 = any; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--workers", type=WORKERS_OR_ALL, default=0, help="number of processes; default: all cores"
    )
    parser.add_argument(
        "--engine",
        type=choice(EXECUTORS),
        default="local",
        help=f"{' or '.join(EXECUTORS)}: use this machine's cores (default) or a Ray cluster's",
    )


def run(options: argparse.Namespace) -> None:
    index = open_index(options.root, options.index, options.workers, options.engine, options.schema)
    print(f"{index.path}: {len(index):,} episodes, {int(index.lengths.sum()):,} steps")
    if options.pack and index.is_addressable:
        print("no pack is needed: the frames of this format are byte ranges")
    elif options.pack:
        pack = open_pack(index, PackOptions(options.quality, options.side), options.workers)
        print(f"{pack.root}: {pack.info['frames']:,} frames, {pack.info['bytes'] / 1e6:,.1f} MB")
