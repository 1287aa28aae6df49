"""The metrics log: its lines, its pictures, and Weights & Biases only on request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcr.errors import UserError
from mcr.runs.log import MetricsLog

ROOT = Path(__file__).parents[2]


@pytest.fixture
def wandb_says(monkeypatch):
    """wandb_says(mode) switches it on for this test alone: it keeps settings per process."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield lambda mode: monkeypatch.setenv("WANDB_MODE", mode)
    wandb.teardown()


def write_a_little(log: MetricsLog) -> None:
    with log:
        log.write(1, "train", {"loss": 0.5})
        log.pictures(1, {"clips": np.full((4, 6, 3), 200, np.uint8)})


def test_pictures_are_in_tensorboard(tmp_path):
    write_a_little(MetricsLog(tmp_path, "step", 0))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (picture,) = events.Images("pictures/clips")
    assert (picture.step, picture.width, picture.height) == (1, 6, 4)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("counter", ["step", "epoch"])
def test_a_resumed_run_drops_the_lines_of_what_it_computes_again(tmp_path, counter):
    with MetricsLog(tmp_path, counter, 0) as log:
        for count in (1, 2, 3):
            log.write(count, "train", {"loss": float(count)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"' + counter)  # as a killed run leaves it
    with MetricsLog(tmp_path, counter, 2) as log:
        assert log.latest == {}
        log.write(3, "train", {"loss": 30.0})
        log.write(3, "val", {"loss": 31.0})
    assert [line[counter] for line in lines_of(tmp_path)] == [1, 2, 3, 3]
    assert lines_of(tmp_path)[2:] == [
        {counter: 3, "split": "train", "loss": 30.0},
        {counter: 3, "split": "val", "loss": 31.0},
    ]
    assert log.latest == {"train": {"loss": 30.0}, "val": {"loss": 31.0}}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 30)]


def test_wandb_is_imported_only_when_asked_for(tmp_path):
    code = (
        "import sys; from pathlib import Path; import mcr.training.train;"
        "from mcr.runs.log import MetricsLog\n"
        "with MetricsLog(Path(sys.argv[1]), 'step', 0) as log:\n"
        "    log.write(1, 'train', {'loss': 0.5})\n"
        "sys.exit('wandb' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)


def test_wandb_offline_keeps_the_run_and_continues_it(tmp_path, wandb_says):
    wandb_says("offline")
    for done in (0, 1):
        write_a_little(MetricsLog(tmp_path, "step", done, {"steps": 2}))
    identity = (tmp_path / "wandb_id.txt").read_text()
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert len(files) >= 1
    stored = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in stored and b"pictures/clips" in stored and b"mcr" in stored


def test_wandb_without_an_account_says_what_to_do(tmp_path, wandb_says, monkeypatch):
    wandb_says("online")
    monkeypatch.setenv("WANDB_API_KEY", "too short to be one")
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        MetricsLog(tmp_path, "step", 0, wandb_config={})
