"""Measure whether encoders look at what is manipulated: manipulation centricity, after MCR's paper.

    mcr centricity my_encoder r3m=r3m_resnet50 --demonstrations assembly.hdf5
    mcr centricity my_encoder --pictures frames --masks masks
    mcr centricity --results evaluation_metaworld/results.csv \\
        --demonstrations evaluation_metaworld/demonstrations/*.hdf5

The score is the Jaccard index, 0 to 1, of each encoder's binarised Grad-CAM with masks of gripper
and objects. Beside it stand the scores of maps that ignore the picture: the whole picture, a disc
in its middle, and random pixels, the latter two as large as the encoder's map. Masks are rendered
(mcr record --masks), or are PNG files with the pictures' names, for example SAM 2's.

--out receives centricity.csv, centricity.md, sweep.png (all thresholds) and a picture per task.
--results is a table of `mcr evaluate`; it adds the correlation with success over the encoders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.errors import UserError
from mcr.evaluation.centricity import THRESHOLD
from mcr.evaluation.centricity_report import compare_centricity
from mcr.evaluation.masked_pictures import read_demonstrations, read_folders
from mcr.runs.ranges import COUNT, DEVICE, number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "encoders",
        nargs="*",
        metavar="ENCODER",
        help="anything that mcr.load_model takes, or NAME=that; default: all of --results",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--demonstrations",
        nargs="+",
        metavar="HDF5",
        help="files with pictures and masks, one per task",
    )
    source.add_argument("--pictures", metavar="DIR", help="folders of pictures, one per task")
    parser.add_argument(
        "--masks", metavar="DIR", help="with --pictures: folders of PNGs with the same names"
    )
    parser.add_argument(
        "--camera", default="", help="the camera to use of --demonstrations with several"
    )
    parser.add_argument(
        "--frames",
        type=COUNT,
        default=64,
        help="frames per task, evenly spaced; default: %(default)s",
    )
    parser.add_argument(
        "--threshold",
        type=number(least=0, most=1),
        default=THRESHOLD,
        help="threshold of the maps; default: %(default)s",
    )
    parser.add_argument("--results", metavar="CSV", help="success rates of the same encoders")
    parser.add_argument(
        "--out", type=Path, default=Path("centricity"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--device", type=DEVICE, help="default: the CPU")


def run(options: argparse.Namespace) -> None:
    if (options.pictures is None) != (options.masks is None):
        raise UserError("--pictures and --masks go together")
    if options.pictures:
        tasks = read_folders(options.pictures, options.masks, options.frames)
    else:
        tasks = (
            read_demonstrations(path, options.camera, options.frames)
            for path in options.demonstrations
        )
    text = compare_centricity(
        options.encoders, tasks, options.out, options.threshold, options.results, options.device
    )
    print(text)
    print(f"written: {options.out}")
