"""Record demonstrations of PushT as a LeRobotDataset, to try policies of LeRobot on:

python scripts/record_pusht.py pusht --episodes 20
"""

import argparse
from pathlib import Path

from mcr.errors import UserError, command_line


@command_line
def main() -> None:
    arguments = _parse_arguments()
    for name in ("episodes", "steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)} must be at least 1")
    from mcr.lerobot.demonstrations import record_pusht

    coverage = record_pusht(arguments.out, arguments.episodes, arguments.steps, arguments.seed)
    print(
        f"written: {arguments.out}, {arguments.episodes} episodes of {arguments.steps} steps; at "
        f"their end the block covers {coverage:.0%} of its goal"
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A scripted expert pushes a T in gym-pusht; written by LeRobot's own writer. "
        "Needs the extra lerobot-policies."
    )
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
