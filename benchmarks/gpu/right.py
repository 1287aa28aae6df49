#!/usr/bin/env python
"""Runs the tests marked `gpu` and a policy's training step; keeps what they found in a JSON file.

    python benchmarks/gpu/right.py --json FILE [--tests EXPRESSION] [--budget SECONDS] [--rehearse]

The file is written again after every test. It holds the outcome, the time, the peak of the GPU's
memory, and what the test measured (pytest's `record_property`). Without a GPU every test is skipped
and says so. --tests chooses tests as pytest's -k does, and leaves out the policy. The exit status
is pytest's, or that of benchmarks/frozen_bc.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcr.runs.atomic import write_text

ROOT = Path(__file__).parents[2]


class Recorder:
    """A pytest plugin that keeps one entry for each test."""

    def __init__(self, path: Path):
        self._path = path
        self.content: dict = {"tests": []}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        entry = {
            "name": report.nodeid.rpartition("/")[2],
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "measured": dict(report.user_properties),
        }
        if torch.cuda.is_available():
            entry["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        if report.outcome != "passed":
            entry["why"] = str(report.longrepr)[-3000:]
        self.content["tests"].append(entry)
        self.save()
        found = "".join(f"; {name}: {value}" for name, value in entry["measured"].items())
        print(f"{entry['outcome']:8} {entry['seconds']:6.1f} s  {entry['name']}{found}", flush=True)

    def save(self) -> None:
        write_text(self._path, json.dumps(self.content, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tests", default="", help="as pytest's -k; no policy is trained then")
    parser.add_argument("--budget", type=float, default=120, help="accepted, not used")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    recorder = Recorder(arguments.json)
    # Only these files are collected: others import packages that this machine may not have.
    files = [p for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in p.read_text()]
    options = ["-m", "gpu", "-k", arguments.tests, "-p", "no:cacheprovider", "-p", "no:xdist"]
    status = pytest.main(
        [*options, "--no-header", "-qq", "--tb=short", "-rs", *map(str, files)], [recorder]
    )
    recorder.save()
    if arguments.tests:
        sys.exit(status)
    recorder.content["frozen_bc"] = frozen_bc(arguments.rehearse)
    recorder.save()
    sys.exit(status or recorder.content["frozen_bc"]["status"])


def frozen_bc(rehearse: bool) -> dict:
    """What benchmarks/frozen_bc.py prints, on the GPU if there is one."""
    tiny = ["--image-size", "32", "--batch-size", "8", "--rounds", "1"] if rehearse else []
    command = [sys.executable, str(ROOT / "benchmarks/frozen_bc.py"), *tiny]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr[-2000:], flush=True)
    return {"status": done.returncode, "table": done.stdout, "errors": done.stderr[-2000:]}


if __name__ == "__main__":
    main()
