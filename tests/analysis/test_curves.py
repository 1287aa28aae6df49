"""Curves: the numbers that a run's log states, and a picture of them."""

import json

import pandas as pd
import pytest
from PIL import Image

from mcr.analysis.curves import final_accuracies, plot_curves, read_metrics
from mcr.errors import UserError


def line(step, split, accuracy):
    return {
        "step": step,
        "split": split,
        "loss": 5.0 - accuracy,
        "time_contrastive/loss": 2.0 - accuracy,
        "time_contrastive/accuracy": accuracy,
        "time_contrastive/chance": 0.2,
        "action_prediction/loss": 3.0,
        "action_prediction/r2": accuracy / 2,
    }


@pytest.fixture
def run_dir(tmp_path):
    lines = [
        line(1, "train", 0.21),
        line(2, "train", 0.5),
        line(2, "val", 0.4),
        line(4, "val", 0.6),
        line(5, "train", 0.9),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return tmp_path


def test_reads_every_line(run_dir):
    metrics = read_metrics(run_dir)
    assert metrics["step"].tolist() == [1, 2, 2, 4, 5]
    assert metrics["split"].tolist() == ["train", "train", "val", "val", "train"]


def test_no_run_there(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file; give the run_dir"):
        read_metrics(tmp_path)


def test_final_accuracies_are_held_out_ones_of_the_last_validation(run_dir):
    assert final_accuracies(read_metrics(run_dir)) == {"time_contrastive": (0.6, 0.2)}


def test_draws_a_column_per_objective(run_dir):
    metrics = read_metrics(run_dir)
    plot_curves(metrics, run_dir / "two.png")
    one = metrics.drop(columns=[name for name in metrics if name.startswith("action_prediction")])
    plot_curves(one, run_dir / "one.png")
    with Image.open(run_dir / "one.png") as narrow, Image.open(run_dir / "two.png") as wide:
        assert (narrow.size, wide.size) == ((462, 660), (924, 660))


def test_the_lines_are_the_losses(run_dir):
    def pixels(metrics):
        plot_curves(metrics, run_dir / "curves.png")
        return (run_dir / "curves.png").read_bytes()

    metrics = read_metrics(run_dir)
    changed = metrics.assign(**{"time_contrastive/loss": pd.Series([9.0, 1.0, 9.0, 1.0, 9.0])})
    assert pixels(metrics) == pixels(metrics.copy()) != pixels(changed)
