#!/usr/bin/env python
"""Extract RLDS shards of DROID (or of a data set in its schema) to the PNG/pickle tree.

Run it again after any interruption: it continues, and the tree ends up the same, byte for byte.

    python scripts/process_data_multicore.py droid/1.0.1 droid_tree
    python scripts/process_data_multicore.py droid/1.0.1 droid_tree --engine ray
    python scripts/process_data_multicore.py droid/1.0.1 droid_tree --shard $SLURM_ARRAY_TASK_ID/64

Several machines: by a Ray cluster, or by any scheduler with --shard; see docs/scaling.md.

Exit code: 0 when every episode was written or skipped by a rule, 1 if one failed (the others are
there), 2 for bad input or a run that had to stop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from mcr.data.droid import EXTERIOR_CAMERAS
from mcr.data.extract import extract
from mcr.data.extract_shard import ENCODERS, LANGUAGE_RULES, Options
from mcr.errors import UserError, command_line
from mcr.runs.processes import EXECUTORS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", help="the RLDS version folder, e.g. droid/1.0.1")
    parser.add_argument("output", help="the tree to write or to continue")
    parser.add_argument("--workers", type=int, help="processes, one shard each; default: all cores")
    parser.add_argument(
        "--engine",
        default="local",
        help=f"{' or '.join(EXECUTORS)}: the cores of this machine (default), or of the Ray "
        "cluster that it belongs to or that $RAY_ADDRESS names (pip install '.[ray]')",
    )
    parser.add_argument(
        "--cameras",
        nargs="+",
        default=EXTERIOR_CAMERAS,
        metavar="CAMERA",
        help=f"cameras to write; default: {' '.join(EXTERIOR_CAMERAS)}; also: wrist_image_left",
    )
    parser.add_argument(
        "--format",
        default="png",
        help=f"{' or '.join(ENCODERS)}: pixels as TensorFlow decodes them (default), or the stored "
        "JPEG bytes, a quarter of the disk and faster to read",
    )
    parser.add_argument(
        "--require-language",
        default="none",
        metavar="RULE",
        help=f"{', '.join(LANGUAGE_RULES)}: which of the three instructions an episode must have "
        "(default none: no loss reads them)",
    )
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="i/n",
        help="do the i-th of n parts of the shards, i from 1; the parts may run at once",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N episodes")
    parser.add_argument("--manifest", metavar="DIR", help="default: OUTPUT.manifest")
    return parser.parse_args()


def parse_part(text: str) -> tuple[int, int]:
    try:
        i, n = map(int, text.split("/"))
    except ValueError:
        raise UserError(f"--shard {text}: give i/n, e.g. 1/8") from None
    return i, n


@command_line
def main() -> int:
    arguments = parse_arguments()
    summary = extract(
        arguments.input,
        arguments.output,
        Options(tuple(arguments.cameras), arguments.format, arguments.require_language),
        arguments.workers,
        parse_part(arguments.shard),
        arguments.limit,
        arguments.manifest,
        arguments.engine,
    )
    print(summary)
    return 1 if summary.counts["failed"] else 0


if __name__ == "__main__":
    main()
