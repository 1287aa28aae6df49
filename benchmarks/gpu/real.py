#!/usr/bin/env python
"""A pretraining run from random weights on the sample data, as a user would start it.

    python benchmarks/gpu/real.py --json FILE [--budget SECONDS] [--rehearse]

Keeps the time to the first logged line, the sustained rate and the held-out accuracies in FILE, and
the run's summary.html beside it, without this machine's paths. The run gets as many steps as fit
into the budget: it stops by SIGTERM, as on a cluster, and the same command then ends it (validation
and summary).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mcr.runs.atomic import write_text
from mcr.training.checkpoint import list_checkpoints

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "resources/sample_droid/1.0.0"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=100, help="seconds for the run")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    options = ["data.selection.val_fraction=0.1", "log_every=50", "save_every=100000"]
    options += ["val_clips=128", "validate_every=100000", "pictures_every=100000"]
    if arguments.rehearse:
        options += ["model.backbone=resnet18", "model.image_size=32", "batch_size=4", "log_every=2"]
        options += ["val_clips=8", "data.workers=1"]
    else:
        options += ["data.workers=8"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.time()
        command = [sys.executable, "-m", "mcr.training.train", "--config-name", "scratch"]
        command += [f"data.root={SAMPLE}", f"data.index={folder}/index", f"run_dir={run}", *options]
        first_line_s = train_for(command, run, began + 0.6 * arguments.budget) - began
        found = figures(run) | {"seconds_to_first_line": round(first_line_s, 1)}
        write_text(arguments.json, json.dumps(found, indent=1))
        # One step more than the run made: the last step validates, draws and sums up.
        ending = [*command, f"steps={last_step(run) + 1}"]
        subprocess.run(ending, check=True)
        found |= figures(run)
        write_text(arguments.json, json.dumps(found, indent=1))
        summary = (run / "summary.html").read_text().replace(f"{folder}/", "")
        summary = summary.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
        arguments.json.with_name("summary.html").write_text(summary)
    print(json.dumps(found, indent=1))


def train_for(command: list[str], run: Path, until: float) -> float:
    """Train until the clock says so, but for ten logged lines at least; then stop by SIGTERM.

    Returns the time at which the first training line was there.
    """
    process = subprocess.Popen(command)
    first_line = 0.0
    while process.poll() is None:
        num_lines = sum(line["split"] == "train" for line in lines(run))
        first_line = first_line or (time.time() if num_lines else 0.0)
        if time.time() > until and num_lines > 10:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.1)
    if process.wait() != 0:
        sys.exit(process.returncode)
    return first_line


def last_step(run: Path) -> int:
    """The step of the newest checkpoint, which may be later than the last line of the log."""
    return int(list_checkpoints(run / "checkpoints")[-1].stem.removeprefix("step_"))


def lines(run: Path) -> list[dict]:
    """What the log holds so far; its last line may still be half written."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def figures(run: Path) -> dict:
    """What the log says of speed and accuracy."""
    training = [line for line in lines(run) if line["split"] == "train"]
    held_out = [line for line in lines(run) if line["split"] == "val"]
    return {
        "versions": json.loads((run / "versions.json").read_text()),
        "steps": training[-1]["step"],
        "training": training[len(training) // 3 :],
        "held_out": held_out[-1] if held_out else None,
    }


if __name__ == "__main__":
    main()
