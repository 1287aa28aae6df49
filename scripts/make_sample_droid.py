"""Make a dataset in DROID's format from simulation: `resources/sample_droid`, or more of it.

    python scripts/make_sample_droid.py OUT [--episodes N] [--tasks lift stack place] [--workers N]

OUT/1.0.0 is an RLDS dataset as `tensorflow_datasets` writes it (see resources/sample_droid). The
packages it needs are in scripts/requirements-sample-droid.txt, apart from those of training. The
work is done in scripts/sample_droid/.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from sample_droid.dataset import EpisodeSummary, write_dataset
from sample_droid.look import Style
from sample_droid.plan import NUM_LABS, SHARES, plan_episodes

from mcr.cli import Parser
from mcr.errors import UserError, command_line
from mcr.runs.ranges import COUNT, SEED, choice, whole

TASKS = ("lift", "stack", "place")


@command_line
def main() -> None:
    arguments = make_parser().parse_strictly(sys.argv[1:])
    _check(arguments)
    plans = plan_episodes(arguments.episodes, arguments.tasks, arguments.seed, arguments.labs)
    style = Style(arguments.quality, arguments.draft)
    summaries = write_dataset(
        arguments.out.resolve(), plans, arguments.shards, arguments.workers, style
    )
    _print_summary(arguments.out, summaries)


def make_parser() -> Parser:
    parser = Parser(
        description="Simulate a Franka Panda at a table and record it as DROID does: three "
        "cameras, proprioception, commands and instructions at 15 Hz, as an RLDS dataset.",
        epilog="Shares of the episodes that are odd on purpose, as in DROID: "
        + ", ".join(f"{name} {share:.0%}" for name, share in SHARES.items())
        + ". The defaults reproduce resources/sample_droid.",
    )
    parser.add_argument("out", type=Path, help="folder to make; its name becomes the dataset's")
    parser.add_argument("--episodes", type=COUNT, default=24, metavar="N", help="default: 24")
    parser.add_argument(
        "--tasks",
        nargs="+",
        type=choice(TASKS),
        choices=TASKS,
        default=list(TASKS),
        help="default: all three",
    )
    parser.add_argument(
        "--labs",
        type=COUNT,
        default=NUM_LABS,
        metavar="N",
        help="each has its own table, walls and tripods; default: 3",
    )
    parser.add_argument("--seed", type=SEED, default=0, help="same seed, same dataset; default: 0")
    parser.add_argument("--shards", type=COUNT, default=4, metavar="N", help="files; default: 4")
    parser.add_argument(
        "--workers", type=COUNT, default=1, metavar="N", help="processes, 1 GB each; default: 1"
    )
    parser.add_argument(
        "--quality",
        type=whole(1, 100),
        default=55,
        metavar="Q",
        help="of the JPEGs; default: 55, DROID: 95",
    )
    parser.add_argument(
        "--draft", action="store_true", help="no shadows, no smooth edges: about 5 times faster"
    )
    return parser


def _check(arguments: argparse.Namespace) -> None:
    if arguments.shards > arguments.episodes:
        raise UserError(
            f"--shards {arguments.shards} exceeds --episodes {arguments.episodes}: "
            "every shard needs an episode"
        )


def _print_summary(out: Path, summaries: list[EpisodeSummary]) -> None:
    print(f"\n{'task':8}{'episodes':>9}{'successes':>11}{'frames':>8}{'MB':>8}{'attempts':>10}")
    groups = {task: [each for each in summaries if each.task == task] for task in TASKS}
    for task, group in (*groups.items(), ("all", summaries)):
        if group:
            print(
                f"{task:8}{len(group):9}{sum(each.success for each in group):11}"
                f"{sum(each.frames for each in group):8}"
                f"{sum(each.num_bytes for each in group) / 1e6:8.2f}"
                f"{sum(each.attempts for each in group):10}"
            )
    oddities = Counter(each.oddity for each in summaries if each.oddity)
    counts = [f"{count} {oddity}" for oddity, count in oddities.most_common()]
    print("odd on purpose:", ", ".join(counts) or "none")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
