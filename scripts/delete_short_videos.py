#!/usr/bin/env python
"""Judge every episode of a tree and report; move or delete the bad ones only when told to.

    python scripts/delete_short_videos.py droid_tree                         reports
    python scripts/delete_short_videos.py droid_tree --quarantine rejected   moves the bad ones

An episode is rejected for a missing or extra camera, cameras of unequal length, missing frames, a
picture that cannot be decoded or has another size, other_data.pkl that is missing, damaged,
incomplete, of another length or dimension than the rest, or not finite, and too few frames. An
episode without language is kept unless --min-words asks for some: no loss reads language.

Extracting to the same tree again brings back what was moved or deleted here.

Exit code: 0 after a report, whatever it says; 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from mcr.data.clean import delete, quarantine, report
from mcr.errors import command_line


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="the tree")
    parser.add_argument("--min-frames", type=int, default=40, help="default: %(default)s")
    parser.add_argument(
        "--min-words",
        type=int,
        default=0,
        help="words that the longest instruction must have; default: %(default)s, which keeps "
        "episodes without language, because no loss reads it",
    )
    parser.add_argument(
        "--cameras",
        nargs="+",
        metavar="CAMERA",
        help="the cameras of an episode; default: those that most episodes have",
    )
    parser.add_argument(
        "--quick", action="store_true", help="look at both ends of the pictures, not inside"
    )
    parser.add_argument("--report", type=Path, metavar="CSV", help="default: ROOT.report.csv")
    parser.add_argument("--workers", type=int, help="processes; default: all cores")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--quarantine", type=Path, metavar="DIR", help="move rejected episodes")
    action.add_argument("--delete", action="store_true", help="delete rejected episodes for good")
    return parser.parse_args()


@command_line
def main() -> None:
    arguments = parse_arguments()
    found = report(
        arguments.root,
        arguments.min_frames,
        arguments.min_words,
        arguments.cameras and tuple(arguments.cameras),
        arguments.quick,
        arguments.workers,
    )
    root = arguments.root.resolve()
    table = arguments.report or root.with_name(f"{root.name}.report.csv")
    found.write_csv(table)
    print(f"{found}\nreport: {table}")
    if arguments.quarantine:
        quarantine(found.rejected, arguments.quarantine)
        print(f"moved {len(found.rejected):,} episodes to {arguments.quarantine}")
    elif arguments.delete:
        delete(found.rejected)
        print(f"deleted {len(found.rejected):,} episodes")
    else:
        print("nothing was changed; --quarantine DIR moves what is rejected, --delete deletes it")


if __name__ == "__main__":
    main()
