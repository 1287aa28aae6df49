"""Logs: what Weights & Biases is told, and that it is left alone unless asked for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcr.errors import UserError
from mcr.runs.log import RunLog

ROOT = Path(__file__).parents[2]


@pytest.fixture
def wandb_says(monkeypatch):
    """wandb_says(mode) switches it on for this test alone: it keeps settings per process."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield lambda mode: monkeypatch.setenv("WANDB_MODE", mode)
    wandb.teardown()


def write_a_little(log: RunLog) -> None:
    with log:
        log.write(1, "train", {"loss": 0.5})
        log.pictures(1, {"clips": np.full((4, 6, 3), 200, np.uint8)})


def test_pictures_are_in_tensorboard(tmp_path):
    write_a_little(RunLog(tmp_path, 0, 2))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (picture,) = events.Images("pictures/clips")
    assert (picture.step, picture.width, picture.height) == (1, 6, 4)


def test_wandb_is_imported_only_when_asked_for(tmp_path):
    code = (
        "import sys; from pathlib import Path; import mcr.training.train;"
        "from mcr.runs.log import RunLog\n"
        "with RunLog(Path(sys.argv[1]), 0, 2) as log: log.write(1, 'train', {'loss': 0.5})\n"
        "sys.exit('wandb' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)


def test_wandb_offline_keeps_the_run_and_continues_it(tmp_path, wandb_says):
    wandb_says("offline")
    for first_step in (0, 1):
        write_a_little(RunLog(tmp_path, first_step, 2, wandb_config={"steps": 2}))
    identity = (tmp_path / "wandb_id.txt").read_text()
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert len(files) >= 1
    stored = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in stored and b"pictures/clips" in stored and b"mcr" in stored


def test_wandb_without_an_account_says_what_to_do(tmp_path, wandb_says, monkeypatch):
    wandb_says("online")
    monkeypatch.setenv("WANDB_API_KEY", "too short to be one")
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        RunLog(tmp_path, 0, 2, wandb_config={})
