"""Faults of a training run that the system causes: processes that die, hang, or run twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "device=cpu", "batch_size=2", "val_clips=2", "pictures_every=0", "log_every=1",
    "save_every=100000", "steps=100000", "model.backbone=resnet18", "model.image_size=32",
    "data.workers=1", "data.selection.min_frames=30", "data.selection.val_fraction=0.25",
)  # fmt: skip


def start(run_dir: Path, shards: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mcr.cli", "train", f"run_dir={run_dir}"),
            *(f"data.root={shards}", *OPTIONS, *options),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_of(run_dir: Path) -> list[tuple[int, str]]:
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [(line["step"], line["split"]) for line in lines]


def loader_processes(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in children.split()]


@pytest.mark.parametrize(
    "fault, options, message",
    [
        (signal.SIGKILL, [], "a loader process was killed, by the system if memory ran out"),
        (signal.SIGSTOP, ["data.timeout_s=5"], "gave no batch within data.timeout_s"),
    ],
)
def test_a_loader_process_that_dies_or_hangs_ends_the_run_in_a_sentence(
    shards, tmp_path, fault, options, message
):
    process = start(tmp_path / "run", shards, *options)
    wait_for(lambda: len(steps_of(tmp_path / "run")) > 3, process)
    workers = loader_processes(process)
    assert workers
    for worker in workers:
        os.kill(worker, fault)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, stderr
    assert message in stderr and "goes on from the last checkpoint" in stderr
    assert "Traceback" not in stderr
    assert not any(Path(f"/proc/{worker}/fd/0").exists() for worker in workers)
    assert not (tmp_path / "run" / ".lock").exists()


def test_twins_are_refused_and_a_kill_before_the_first_checkpoint_leaves_no_line_twice(
    shards, tmp_path
):
    run_dir = tmp_path / "run"
    first = start(run_dir, shards)
    wait_for(lambda: len(steps_of(run_dir)) > 2, first)
    second = start(run_dir, shards)
    _, stderr = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 2 and "Traceback" not in stderr
    assert f"error: {run_dir}: process {first.pid} on " in stderr
    assert "wait for it, or choose another run_dir" in stderr
    first.kill()
    first.communicate()
    again = start(run_dir, shards, "steps=2")
    _, stderr = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, stderr
    assert steps_of(run_dir) == [(0, "val"), (1, "train"), (2, "train"), (2, "val")]
