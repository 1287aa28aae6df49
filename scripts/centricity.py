#!/usr/bin/env python
"""Do encoders look at what is being manipulated? Manipulation centricity, after MCR's paper.

    python scripts/centricity.py my_encoder r3m=r3m_resnet50 --demonstrations assembly.hdf5
    python scripts/centricity.py my_encoder --pictures frames --masks masks
    python scripts/centricity.py --results evaluation_metaworld/results.csv \\
        --demonstrations evaluation_metaworld/demonstrations/*.hdf5

The Jaccard index of each encoder's binarised Grad-CAM with masks of gripper and objects, 0 to 1,
beside what maps get that never looked: the whole picture, a disc in its middle and random pixels,
both as large as the encoder's map. Masks are rendered (record_demonstrations.py --masks), or PNG
files named as the pictures (SAM 2's).

Writes to --out: centricity.csv and .md, sweep.png (over thresholds), a picture per task. --results
is a table of evaluate.py: adds the correlation with success, over the encoders named here or all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.errors import UserError, command_line
from mcr.evaluation.centricity import THRESHOLD
from mcr.evaluation.centricity_report import compare_centricity
from mcr.evaluation.masked_pictures import read_demonstrations, read_folders


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "encoders",
        nargs="*",
        metavar="ENCODER",
        help="what mcr.load_model reads, or NAME=that; default: all of --results",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--demonstrations", nargs="+", metavar="HDF5", help="with pictures and masks; a task each"
    )
    source.add_argument("--pictures", metavar="DIR", help="folders of pictures; a task each")
    parser.add_argument("--masks", metavar="DIR", help="of --pictures: PNGs of the same names")
    parser.add_argument("--camera", default="", help="of --demonstrations with several")
    parser.add_argument(
        "--frames", type=int, default=64, help="of each task, evenly chosen; default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="of the maps; default: %(default)s"
    )
    parser.add_argument("--results", metavar="CSV", help="success rates of the same encoders")
    parser.add_argument("--out", type=Path, default=Path("centricity"), metavar="DIR")
    parser.add_argument("--device", help="default: the CPU")
    arguments = parser.parse_args()
    if (arguments.pictures is None) != (arguments.masks is None):
        parser.error("--pictures and --masks go together")
    return arguments


@command_line
def main() -> None:
    arguments = parse_arguments()
    if arguments.frames < 1:
        raise UserError(f"--frames {arguments.frames}: give 1 or more")
    if arguments.pictures:
        tasks = read_folders(arguments.pictures, arguments.masks, arguments.frames)
    else:
        tasks = (
            read_demonstrations(path, arguments.camera, arguments.frames)
            for path in arguments.demonstrations
        )
    text = compare_centricity(
        arguments.encoders,
        tasks,
        arguments.out,
        arguments.threshold,
        arguments.results,
        arguments.device,
    )
    print(text)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
