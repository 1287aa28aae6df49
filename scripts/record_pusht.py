"""Record demonstrations of PushT as a LeRobotDataset, to try policies of LeRobot on:

python scripts/record_pusht.py pusht --episodes 20
"""

import sys
from pathlib import Path

from mcr.cli import Parser
from mcr.errors import command_line
from mcr.runs.ranges import COUNT, SEED


@command_line
def main() -> None:
    arguments = make_parser().parse_strictly(sys.argv[1:])
    from mcr.lerobot.demonstrations import record_pusht

    coverage = record_pusht(arguments.out, arguments.episodes, arguments.steps, arguments.seed)
    print(
        f"written: {arguments.out}, {arguments.episodes} episodes of {arguments.steps} steps; at "
        f"their end the block covers {coverage:.0%} of its goal"
    )


def make_parser() -> Parser:
    parser = Parser(
        description="A scripted expert pushes a T in gym-pusht; written by LeRobot's own writer. "
        "Needs the extra lerobot-policies."
    )
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--episodes", type=COUNT, default=20, metavar="N", help="default: 20")
    parser.add_argument("--steps", type=COUNT, default=60, metavar="N", help="default: 60")
    parser.add_argument("--seed", type=SEED, default=0, help="default: 0")
    return parser


if __name__ == "__main__":
    main()
