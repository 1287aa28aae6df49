#!/usr/bin/env python
"""Attacks every reader of files with thousands of hostile ones, and counts what happens.

    python benchmarks/attack.py [--cases 10000] [--seed 0] [--workers 2] [--campaigns tree rlds ...]

A case is a sound file or data set that was damaged: flipped bits, missing and inserted blocks,
absurd values, code in pickles, pipes and devices in the place of files. `mcr` must read it, or less
of it with a named problem, or refuse it in a sentence (`UserError`). A table counts the cases of
each campaign; the exit code is 1 if any case ended in another way. What went wrong is printed at
once with the number of the case; `--case tree:17` repeats that one and shows what it does. Ctrl-C
prints the table of the cases so far. `benchmarks/attacks/` holds the campaigns.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from attacks import CAMPAIGNS
from attacks.running import BAD, GOOD, Result, run_campaign

from mcr.errors import UserError, command_line, require_choice
from mcr.runs.processes import processor, progress_bar

_CASES_PER_RUN = 400


def main() -> int:
    arguments = _parse()
    if arguments.case:
        return _repeat(arguments.case, arguments.seed, arguments.seconds)
    for name in arguments.campaigns:
        require_choice("--campaigns", name, CAMPAIGNS)
    if arguments.cases < 1 or arguments.workers < 1 or arguments.first < 0:
        raise UserError("--cases and --workers must be at least 1, and --first at least 0")
    began = time.monotonic()
    share = -(-arguments.cases // len(arguments.campaigns))
    behind = arguments.first + share
    tasks = [
        (name, range(first, min(first + _CASES_PER_RUN, behind)))
        for first in range(arguments.first, behind, _CASES_PER_RUN)
        for name in arguments.campaigns
    ]
    results = [(Result(name), cases) for name, cases in tasks]
    try:
        _run_all(results, arguments)
    except KeyboardInterrupt:  # print what has been counted, and wait for nothing
        _print_table(results, arguments, time.monotonic() - began)
        sys.stdout.flush()
        os._exit(130)
    _print_table(results, arguments, time.monotonic() - began)
    return int(any(result.failures for result, _ in results))


def _run_all(results: list[tuple[Result, range]], arguments: argparse.Namespace) -> None:
    total = sum(len(cases) for _, cases in results)
    pool = ThreadPoolExecutor(arguments.workers)  # waits for its threads only if all goes well
    with progress_bar(None, "attacks", "case", total) as bar:
        limits = arguments.seed, arguments.seconds, bar.update
        for run in [pool.submit(run_campaign, *each, *limits) for each in results]:
            run.result()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of all campaigns together")
    parser.add_argument("--first", type=int, default=0, help="number of each campaign's first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="cases that run at the same time")
    parser.add_argument("--campaigns", nargs="+", default=list(CAMPAIGNS), help="those to run")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="that a case may take before it is a hang"
    )
    parser.add_argument("--case", default="", help="repeat one case, for example tree:17")
    return parser.parse_args()


def _repeat(case: str, seed: int, seconds: float) -> int:
    name, _, number = case.partition(":")
    require_choice("--case", name, CAMPAIGNS)
    result = Result(name)
    run_campaign(result, range(int(number), int(number) + 1), seed, seconds, lambda: None)
    print(dict(result.counts))
    for failure in result.failures:
        print(*failure)
    return int(bool(result.failures))


def _print_table(
    results: list[tuple[Result, range]], arguments: argparse.Namespace, seconds: float
) -> None:
    print(f"{processor()}, seed {arguments.seed}, {seconds:.0f} s")
    names = ("cases", *GOOD, *BAD)
    print("| campaign | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for name in arguments.campaigns:
        _print_row(name, [result for result, _ in results if result.name == name])
    _print_row("all", [result for result, _ in results])
    for result, _ in results:
        for case, outcome, detail in result.failures[:20]:
            print(f"\n{result.name}:{case} {outcome}: {detail[:300]}\n{detail[-2000:]}")


def _print_row(name: str, results: list[Result]) -> None:
    counts = [sum(result.counts[outcome] for result in results) for outcome in (*GOOD, *BAD)]
    print(f"| {name} | " + " | ".join(f"{count:,}" for count in (sum(counts), *counts)) + " |")


if __name__ == "__main__":
    command_line(main)()
