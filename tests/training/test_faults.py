"""Faults of a training run that the system causes: a loader process that dies, and a twin run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mcr.errors import UserError
from mcr.training.train import train
from tests.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "device=cpu", "batch_size=4", "val_clips=8", "pictures_every=0", "log_every=1",
    "save_every=100000", "steps=100000", "model.backbone=resnet18", "model.image_size=32",
    "data.workers=1", "data.selection.min_frames=30", "data.selection.val_fraction=0.25",
)  # fmt: skip


def start(run_dir: Path, shards: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mcr.cli", "train", "--config-name", "scratch"),
            *(f"run_dir={run_dir}", f"data.root={shards}", *OPTIONS),
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


def test_a_twin_is_refused_and_a_run_without_its_loader_ends_in_a_sentence_and_starts_again(
    tiny, shards, tmp_path
):
    run_dir = tmp_path / "run"
    first = start(run_dir, shards)
    wait_for(lambda: len(steps_of(run_dir)) > 2, first)
    with pytest.raises(UserError) as refusal:
        train(tiny(steps=2))
    assert f"{run_dir}: process {first.pid} on " in str(refusal.value)
    assert "wait for it, or choose another run_dir" in str(refusal.value)

    (loader,) = loader_processes(first)
    os.kill(loader, signal.SIGKILL)
    _, stderr = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 2, stderr
    assert "a loader process was killed" in stderr and "Traceback" not in stderr
    assert not (run_dir / ".lock").exists()

    train(tiny(steps=2))  # from the beginning, because there is no checkpoint
    assert steps_of(run_dir) == [(0, "val"), (1, "train"), (2, "train"), (2, "val")]
