"""Record demonstrations of robosuite's Lift for robomimic:

python scripts/record_lift.py lift.hdf5 --demonstrations 40
"""

import sys
from pathlib import Path

from mcr.cli import Parser
from mcr.errors import command_line
from mcr.runs.ranges import COUNT, PIXELS, SEED, number


@command_line
def main() -> None:
    arguments = make_parser().parse_strictly(sys.argv[1:])
    from mcr.robomimic.demonstrations import record_lift

    made = record_lift(
        arguments.out, arguments.demonstrations, arguments.size, arguments.noise, arguments.seed
    )
    print(
        f"written: {arguments.out}, {made.demonstrations} demonstrations of {made.steps} steps in "
        f"all, from {made.attempts} attempts"
    )


def make_parser() -> Parser:
    parser = Parser(
        description="A scripted expert lifts the cube in robosuite, seen by two cameras; "
        "written as robomimic's HDF5. Needs the extra robomimic."
    )
    parser.add_argument("out", type=Path, help="the HDF5 file to write")
    parser.add_argument("--demonstrations", type=COUNT, default=40, metavar="N", help="default: 40")
    parser.add_argument(
        "--size",
        type=PIXELS,
        default=84,
        metavar="PIXELS",
        help="default: 84",
    )
    parser.add_argument(
        "--noise",
        type=number(least=0, most=1),
        default=0.2,
        help="on the executed actions, 0..1; default: 0.2",
    )
    parser.add_argument("--seed", type=SEED, default=0, help="default: 0")
    return parser


if __name__ == "__main__":
    main()
