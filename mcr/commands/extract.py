"""Extract a data set of any format to a tree of PNGs and pickles.

    mcr extract droid/1.0.1 droid_tree
    mcr extract my_robot.hdf5 my_tree --schema my_robot.yaml
    mcr extract droid/1.0.1 droid_tree --engine ray
    mcr extract droid/1.0.1 droid_tree --shard $SLURM_ARRAY_TASK_ID/64

Run the same command again after an interruption: it continues, and the tree ends up the same, byte
for byte. Several machines share the work as a Ray cluster, or under any scheduler with --shard; see
docs/scaling.md.

Exit code: 0 if every episode was written or skipped by a rule, 1 if an episode failed (the others
are there), 2 for bad input or a run that had to stop.
"""

from __future__ import annotations

import argparse

from mcr.data.extract import extract
from mcr.data.extract_pictures import FORMATS
from mcr.data.extract_shard import LANGUAGE_RULES, Options
from mcr.errors import UserError
from mcr.runs.processes import EXECUTORS
from mcr.runs.ranges import COUNT, WORKERS, choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a data set of any format, e.g. droid/1.0.1")
    parser.add_argument("output", help="the tree to write or to continue")
    parser.add_argument(
        "--workers", type=WORKERS, help="number of processes, a shard each; default: all cores"
    )
    parser.add_argument(
        "--engine",
        type=choice(EXECUTORS),
        default="local",
        help=f"{' or '.join(EXECUTORS)}: use the cores of this machine (default), or of the Ray "
        "cluster that it belongs to or that $RAY_ADDRESS names (pip install 'mcr[ray]')",
    )
    parser.add_argument(
        "--cameras",
        nargs="+",
        default=[],
        metavar="CAMERA",
        help="cameras to write; default: those of the schema (of DROID the two exterior ones), or "
        "all",
    )
    parser.add_argument(
        "--schema",
        metavar="NAME|YAML",
        help="what the data set calls its cameras and signals: a name of cfgs/data/ or a file; "
        "default: what is known of the data set",
    )
    parser.add_argument(
        "--format",
        type=choice(FORMATS),
        default="png",
        help=f"{' or '.join(FORMATS)}: write pixels as TensorFlow decodes them (default), or the "
        "stored JPEG bytes, which take a quarter of the disk and are faster to read; pictures that "
        "are not stored as JPEG are encoded with quality 95",
    )
    parser.add_argument(
        "--require-language",
        type=choice(LANGUAGE_RULES),
        default="none",
        metavar="RULE",
        help=f"{', '.join(LANGUAGE_RULES)}: which of its instructions an episode must have "
        "(default: none, because no loss reads them)",
    )
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="i/n",
        help="process the i-th of n parts of the data, i from 1; the parts may run at once",
    )
    parser.add_argument(
        "--limit", type=COUNT, metavar="N", help="extract only the first N episodes"
    )
    parser.add_argument(
        "--manifest",
        metavar="DIR",
        help="where to write what became of each record; default: OUTPUT.manifest",
    )


def run(options: argparse.Namespace) -> int:
    summary = extract(
        options.input,
        options.output,
        Options(tuple(options.cameras), options.format, options.require_language),
        options.workers,
        parse_part(options.shard),
        options.limit,
        options.manifest,
        options.engine,
        options.schema,
    )
    print(summary)
    return 1 if summary.counts["failed"] else 0


def parse_part(text: str) -> tuple[int, int]:
    """ "1/8" -> (1, 8)."""
    try:
        i, n = map(int, text.split("/"))
    except ValueError:
        raise UserError(f"--shard {text}: give i/n, e.g. 1/8") from None
    return i, n
