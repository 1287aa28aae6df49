"""Record successful demonstrations of a simulated task by its scripted expert.

    mcr record metaworld/assembly assembly.hdf5 --count 25
    mcr record robosuite/lift lift.hdf5 --masks

The result is in robomimic's HDF5 format, pictures included. This needs the extra hdf5 and that of
the suite, metaworld or robosuite.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.runs.ranges import COUNT, PIXELS, SEED, choice, number
from mcr.simulation.recorder import record_demonstrations
from mcr.simulation.simulator import LOOKS, PictureConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="suite/name, e.g. metaworld/assembly or robosuite/lift")
    parser.add_argument("out", type=Path, help="the HDF5 file to write")
    parser.add_argument(
        "--count", type=COUNT, default=25, metavar="N", help="demonstrations; default: %(default)s"
    )
    parser.add_argument(
        "--picture-size",
        type=PIXELS,
        default=224,
        metavar="PIXELS",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--noise",
        type=number(least=0, most=1),
        default=0.1,
        help="noise on the executed actions, 0..1; default: %(default)s",
    )
    parser.add_argument("--seed", type=SEED, default=0, help="default: %(default)s")
    parser.add_argument(
        "--masks", action="store_true", help="also record masks of the gripper and the objects"
    )
    parser.add_argument(
        "--cameras", nargs="+", default=(), metavar="CAMERA", help="default: the suite's own"
    )
    parser.add_argument(
        "--looks",
        type=choice(LOOKS),
        default="fixed",
        choices=LOOKS,
        help="recoloured: draw light and colours anew for each scene; varied: draw cameras too; "
        "default: %(default)s",
    )


def run(options: argparse.Namespace) -> None:
    pictures = PictureConfig(options.picture_size, tuple(options.cameras), options.looks)
    made = record_demonstrations(
        options.task,
        options.out,
        options.count,
        options.noise,
        options.seed,
        options.masks,
        pictures,
    )
    print(
        f"written: {options.out}, {made.demonstrations} demonstrations of {made.steps} steps in "
        f"all, from {made.attempts} attempts"
    )
