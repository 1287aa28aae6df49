"""Record demonstrations of a simulated task by its scripted expert:

python scripts/record_demonstrations.py metaworld/assembly assembly.hdf5 --count 25
"""

import argparse
from pathlib import Path

from mcr.errors import command_line
from mcr.simulation.simulator import LOOKS, PictureConfig


@command_line
def main() -> None:
    arguments = _parse_arguments()
    from mcr.simulation.recorder import record_demonstrations

    pictures = PictureConfig(arguments.picture_size, tuple(arguments.cameras), arguments.looks)
    made = record_demonstrations(
        arguments.task,
        arguments.out,
        arguments.count,
        arguments.noise,
        arguments.seed,
        arguments.masks,
        pictures,
    )
    print(
        f"written: {arguments.out}, {made.demonstrations} demonstrations of {made.steps} steps in "
        f"all, from {made.attempts} attempts"
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Successful demonstrations in robomimic's HDF5 format, pictures included. "
        "Needs the extra hdf5 and that of the suite: metaworld or robosuite."
    )
    parser.add_argument("task", help="suite/name, as metaworld/assembly, robosuite/lift")
    parser.add_argument("out", type=Path, help="the HDF5 file to write")
    parser.add_argument("--count", type=int, default=25, metavar="N", help="default: 25")
    parser.add_argument(
        "--picture-size", type=int, default=224, metavar="PIXELS", help="default: 224"
    )
    parser.add_argument(
        "--noise", type=float, default=0.1, help="on the executed actions, 0..1; default: 0.1"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--masks", action="store_true", help="record where gripper and objects are seen, too"
    )
    parser.add_argument(
        "--cameras", nargs="+", default=(), metavar="NAME", help="default: the suite's usual ones"
    )
    parser.add_argument(
        "--looks",
        default="fixed",
        choices=LOOKS,
        help="varied: cameras, light and colours drawn anew for each scene; default: fixed",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
