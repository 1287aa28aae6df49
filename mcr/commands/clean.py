"""Check every episode of a tree and report the bad ones; move or delete them only if told to.

    mcr clean droid_tree                         report
    mcr clean droid_tree --quarantine rejected   report, then move the rejected episodes

An episode is rejected if a camera is missing or unexpected, its cameras differ in length, frames
are missing, a picture cannot be decoded or differs in size from the rest, or it has too few frames.
It is rejected if other_data.pkl is missing, damaged, not finite, or of another length or dimension
than the rest, or lacks a signal that most episodes have. An episode without language is kept unless
--min-words asks for some, because no loss reads language.

Extracting to the same tree again brings back what was moved or deleted here.

Exit code: 0 after a report, whatever it says; 2 for bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.data.clean import delete, quarantine, report
from mcr.errors import UserError
from mcr.runs.locks import exclusive_folder
from mcr.runs.ranges import WORKERS, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, help="the tree")
    parser.add_argument(
        "--min-frames",
        type=whole(0),
        help="frames that an episode must have; default: what training asks for, 40 for DROID",
    )
    parser.add_argument(
        "--min-words",
        type=whole(0),
        default=0,
        help="words that the longest instruction must have; default: %(default)s, which keeps "
        "episodes without language",
    )
    parser.add_argument(
        "--cameras",
        nargs="+",
        metavar="CAMERA",
        help="the cameras that an episode must have; default: those that most episodes have",
    )
    parser.add_argument(
        "--quick", action="store_true", help="check only the beginning and end of picture files"
    )
    parser.add_argument(
        "--report", type=Path, metavar="CSV", help="the report; default: ROOT.report.csv"
    )
    parser.add_argument("--workers", type=WORKERS, help="number of processes; default: all cores")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--quarantine", type=Path, metavar="DIR", help="move rejected episodes")
    action.add_argument("--delete", action="store_true", help="delete rejected episodes for good")


def run(options: argparse.Namespace) -> None:
    if not (options.quarantine or options.delete):
        _clean(options)
        return
    if not options.root.is_dir():
        raise UserError(f"{options.root}: no such folder; give the root of an extracted tree")
    with exclusive_folder(options.root, "report without --quarantine and --delete"):
        _clean(options)


def _clean(options: argparse.Namespace) -> None:
    found = report(
        options.root,
        options.min_frames,
        options.min_words,
        options.cameras and tuple(options.cameras),
        options.quick,
        options.workers,
    )
    root = options.root.resolve()
    table = options.report or root.with_name(f"{root.name}.report.csv")
    found.write_csv(table)
    print(f"{found}\nreport: {table}")
    if options.quarantine:
        quarantine(found.rejected, options.quarantine)
        print(f"moved {len(found.rejected):,} episodes to {options.quarantine}")
    elif options.delete:
        delete(found.rejected)
        print(f"deleted {len(found.rejected):,} episodes")
    else:
        print("nothing was changed; --quarantine DIR moves what is rejected, --delete deletes it")
