"""Record demonstrations of robosuite's Lift for robomimic:

python scripts/record_lift.py lift.hdf5 --demonstrations 40
"""

import argparse
from pathlib import Path

from mcr.errors import UserError, command_line


@command_line
def main() -> None:
    arguments = _parse_arguments()
    for name in ("demonstrations", "size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)} must be at least 1")
    from mcr.robomimic.demonstrations import record_lift

    made = record_lift(
        arguments.out, arguments.demonstrations, arguments.size, arguments.noise, arguments.seed
    )
    print(
        f"written: {arguments.out}, {made.demonstrations} demonstrations of {made.steps} steps in "
        f"all, from {made.attempts} attempts"
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A scripted expert lifts the cube in robosuite, seen by two cameras; "
        "written as robomimic's HDF5. Needs the extra robomimic."
    )
    parser.add_argument("out", type=Path, help="the HDF5 file to write")
    parser.add_argument("--demonstrations", type=int, default=40, metavar="N", help="default: 40")
    parser.add_argument("--size", type=int, default=84, metavar="PIXELS", help="default: 84")
    parser.add_argument(
        "--noise", type=float, default=0.2, help="on the executed actions, 0..1; default: 0.2"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
