"""`mcr evaluate --suite offline`, which needs no simulator."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from mcr.models.untrained import write_untrained

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


def evaluate(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_offline_suite_from_encoder_to_table(sample, tmp_path):
    data = tmp_path / "1.0.0"
    data.mkdir()
    for file in sample.iterdir():
        (data / file.name).symlink_to(file)
    encoder = write_untrained(tmp_path / "mine.pt", image_size=32, seed=5)
    command = (f"mine={encoder}", "--suite", "offline", "--data", data, "--seeds", 1)
    result = evaluate(*command, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "out/results.csv")
    assert set(rows["encoder"]) == {"mine", "untrained resnet18, 32 px"}
    assert {"state_ridge", "temporal_order", "retrieval_all", "effective_rank"} <= set(rows["task"])
    ranks = rows[rows["task"] == "effective_rank"]
    assert (ranks["low"] <= ranks["value"]).all() and (ranks["value"] <= ranks["high"]).all()
    assert "| encoder | state_ridge |" in result.stdout
    assert (tmp_path / "out/results.png").stat().st_size > 1000


def test_offline_suite_needs_data(tmp_path):
    encoder = write_untrained(tmp_path / "mine.pt", image_size=32)
    result = evaluate(encoder, "--suite", "offline", "--out", tmp_path)
    assert result.returncode == 2
    assert "--suite offline needs --data" in result.stderr
