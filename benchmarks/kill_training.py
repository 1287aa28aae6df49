#!/usr/bin/env python
"""Kills a training run at random moments, again and again, and sees whether it matters.

    python benchmarks/kill_training.py [--kills 20] [--processes 2] [--seed 0]

A small run under `torchrun --max-restarts` on the reference shards. At random moments `kill -9`
hits one of its processes: a rank, a loader worker, or all at once with the launcher, after which
the same command is given again. While that goes on, the newest checkpoint is read over and over. In
the end the weights, the optimiser and the log must be those of the same run left in peace.

Exits with 1 if they are not, or if ever a checkpoint could not be read. About 10 s per kill on two
cores: starting Python and torch is most of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from mcr.runs.processes import processor
from mcr.training.checkpoint import list_checkpoints, load_checkpoint

ROOT = Path(__file__).parents[1]
SHARDS = ROOT / "tests/data/droid_tfds/1.0.0"
OVERRIDES = (
    "device=cpu", "batch_size=6", "val_clips=0", "pictures_every=0", "log_every=1", "save_every=5",
    "model.backbone=resnet18", "model.image_size=32", "data.workers=1",
    "data.selection.min_frames=30", "data.selection.val_fraction=0",
)  # fmt: skip
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


class Job:
    """One run under torchrun, and the processes that belong to it."""

    def __init__(self, run_dir: Path, shards: Path, steps: int, processes: int):
        self.run_dir = run_dir
        self.checkpoints = run_dir / "checkpoints"
        launcher = ["--standalone", f"--nproc-per-node={processes}", "--max-restarts=1000"]
        chosen = [f"run_dir={run_dir}", f"data.root={shards}", f"steps={steps}", *OVERRIDES]
        module = ["-m", "mcr.training.train", "--config-name", "scratch"]
        self._command = [
            *(sys.executable, "-m", "torch.distributed.run"), *launcher, *module, *chosen
        ]  # fmt: skip
        self._log = run_dir.with_suffix(".log")
        self.start()

    def start(self) -> None:
        with self._log.open("a") as log:
            self._launcher = subprocess.Popen(
                self._command, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def exit_code(self) -> int | None:
        return self._launcher.poll()

    def processes(self) -> dict[str, list[int]]:
        """Process numbers by what they are: launcher, rank, worker."""
        found: dict[str, list[int]] = {"launcher": [self._launcher.pid], "rank": [], "worker": []}
        ours = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.run_dir).encode() in (folder / "cmdline").read_bytes():
                    parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                    ours[int(folder.name)] = int(parent)
        for process, parent in ours.items():
            if parent == self._launcher.pid:
                found["rank"].append(process)
            elif parent in ours:
                found["worker"].append(process)
        return found

    def kill(self, what: str, chance: random.Random) -> bool:
        """`kill -9` to one process of that kind, or to "all". Whether there was one."""
        processes = self.processes()
        if what == "all":
            victims = [process for kind in processes.values() for process in kind]
        else:
            victims = processes[what] and [chance.choice(processes[what])]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        if what == "all":
            self._launcher.wait()
            self.start()
        return bool(victims)

    def output(self) -> str:
        return self._log.read_text()


class Reader(threading.Thread):
    """Reads the newest checkpoint again and again; `unreadable` counts what was not whole."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self._folder = folder
        self.is_over = threading.Event()
        self.reads = self.unreadable = 0

    def run(self) -> None:
        while not self.is_over.wait(0.5):
            for path in list_checkpoints(self._folder)[-1:]:
                try:
                    load_checkpoint(path)
                    self.reads += 1
                except ValueError:
                    # Newer ones may have replaced it in the meantime; then it is not the newest.
                    self.unreadable += path.exists()


def wait_for_step(job: Job, step: int, patience_s: float = 180) -> None:
    """Until the run has logged `step`, or is over."""
    deadline = time.monotonic() + patience_s
    while job.exit_code is None and last_step(job.run_dir) < step:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no step {step} after {patience_s:.0f} s: {job.output()[-3000:]}")
        time.sleep(0.02)


def last_step(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # the line that is being written
            return json.loads(line)["step"]
    return 0


def harass(job: Job, kills: int, chance: random.Random) -> list[str]:
    """Kill `kills` times, each at a random moment of the run's latest life; what was killed."""
    killed = []
    while len(killed) < kills and job.exit_code is None:
        # One kill in four hits a run that is still starting, the others one that is under way.
        if chance.random() < 0.25:
            time.sleep(chance.uniform(0, 6))
        else:
            wait_for_step(job, saved_step(job) + chance.randint(1, 8))
            time.sleep(chance.uniform(0, 0.3))
        what = chance.choice(["rank", "rank", "worker", "all"])
        if job.exit_code is None and job.kill(what, chance):
            killed.append(what)
            print(f"kill {len(killed):2}: {what}, step {last_step(job.run_dir)}", file=sys.stderr)
    return killed


def saved_step(job: Job) -> int:
    """The step that the run's next life will begin with."""
    newest = list_checkpoints(job.checkpoints)[-1:]
    return int(newest[0].stem.removeprefix("step_")) if newest else 0


def tensors(content: object, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return {prefix: content}
    if isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {k: v for key, part in items for k, v in tensors(part, f"{prefix}/{key}").items()}
    return {}


def differences(run: Path, reference: Path) -> list[str]:
    """Tensors of the last checkpoints, and logged losses, that are not the same in every bit."""
    newest = [list_checkpoints(folder / "checkpoints")[-1] for folder in (run, reference)]
    last = [tensors(load_checkpoint(path)) for path in newest]
    wrong = [key for key in last[1] if not torch.equal(last[0][key], last[1][key])]
    losses = [
        [(line["step"], line["loss"]) for line in map(json.loads, (r / "metrics.jsonl").open())]
        for r in (run, reference)
    ]
    return wrong + (["metrics.jsonl"] if losses[0] != losses[1] else [])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when")
    arguments = parser.parse_args()
    print(f"hardware: {processor()}; torch {torch.__version__}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        shards = shutil.copytree(SHARDS, Path(folder) / "shards", copy_function=shutil.copyfile)
        size = (12 * arguments.kills, arguments.processes)  # it must not end before the last kill
        peaceful = Job(Path(folder) / "peaceful", shards, *size)
        while peaceful.exit_code is None:
            time.sleep(0.1)
        job = Job(Path(folder) / "killed", shards, *size)
        reader = Reader(job.checkpoints)
        reader.start()
        began = time.monotonic()
        killed = harass(job, arguments.kills, random.Random(arguments.seed))
        while job.exit_code is None:
            time.sleep(0.1)
        reader.is_over.set()
        reader.join()
        if peaceful.exit_code or job.exit_code:
            print(peaceful.output()[-2000:], job.output()[-5000:], file=sys.stderr)
            return 1
        wrong = differences(job.run_dir, peaceful.run_dir)
    print("| kills | of ranks | of loader workers | of all at once | seconds | checkpoints read "
          "| unreadable | tensors that differ |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    counts = " | ".join(str(killed.count(what)) for what in ("rank", "worker", "all"))
    print(
        f"| {len(killed)} | {counts} | {time.monotonic() - began:.0f} | {reader.reads} "
        f"| {reader.unreadable} | {len(wrong)} {', '.join(wrong[:3])} |"
    )
    return int(bool(wrong) or reader.unreadable > 0 or len(killed) < arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
