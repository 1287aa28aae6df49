"""The folder of a run: its config, its metrics, and what they amount to."""

import re

import pandas as pd
import pytest
import torch

from mcr.errors import UserError
from mcr.training.run_folder import (
    final_accuracies,
    final_metrics,
    hardware,
    load_config,
    read_metrics,
)


def test_reads_every_line(run_dir):
    metrics = read_metrics(run_dir)
    assert metrics["step"].tolist() == [1, 2, 2, 4, 5]
    assert metrics["split"].tolist() == ["train", "train", "val", "val", "train"]


def test_a_folder_without_a_run_is_named(tmp_path):
    for read, name in ((read_metrics, "metrics"), (load_config, "config")):
        with pytest.raises(UserError, match=rf"{name}\.\w+: no such file; give the run_dir"):
            read(tmp_path)


def test_a_config_of_another_version_is_refused(run_dir):
    with (run_dir / "config.yaml").open("a") as file:
        file.write("velocity: 3\n")
    with pytest.raises(UserError, match=r"config\.yaml: Key 'velocity'.*another version"):
        load_config(run_dir)


def test_final_metrics_are_the_last_validation_and_the_mean_of_the_last_lines(run_dir):
    table = final_metrics(read_metrics(run_dir))
    assert table.loc["time_contrastive/accuracy"].tolist() == pytest.approx([1.61 / 3, 0.6, 0.2])
    assert table.loc["action_prediction/r2"].tolist() == pytest.approx([1.61 / 6, 0.3, 0.0])
    assert pd.isna(table.loc["loss", "chance"]) and "step" not in table.index
    assert final_accuracies(read_metrics(run_dir)) == {"time_contrastive": (0.6, 0.2)}


def test_hardware_is_named():
    assert re.search(r"\w.*, \d+ cores, threads: \d+", hardware(torch.device("cpu")))


def test_a_config_with_an_old_key_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {views: [wrist_image_left], workers: 3}\n")
    data = load_config(tmp_path).data
    assert (data.cameras, data.workers) == (["wrist_image_left"], 3)
