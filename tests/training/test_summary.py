"""The summary of a run: final numbers, curves, and the page that shows them."""

import base64
import json
import re
import sys

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from mcr.errors import UserError
from mcr.training.curves import plot_curves
from mcr.training.run_folder import (
    final_accuracies,
    final_metrics,
    hardware,
    load_config,
    read_metrics,
    save_launch,
)
from mcr.training.summary import write_summary


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
def run_dir(tmp_path, tiny, monkeypatch):
    """The folder of a run after a few steps."""
    lines = [
        line(1, "train", 0.21),
        line(2, "train", 0.5),
        line(2, "val", 0.4),
        line(4, "val", 0.6),
        line(5, "train", 0.9),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    config = tiny(steps=9, run_dir=str(tmp_path), **{"optimizer.lr": 0.123})
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "mcr.training.train", "a.b=c d"])
    save_launch(tmp_path, ["the data", "7 episodes <b>"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000005.pt").write_bytes(b"x")
    (tmp_path / "pictures").mkdir()
    for step, colour in ((0, "red"), (2, "green"), (4, "blue")):
        Image.new("RGB", (3, 2), colour).save(tmp_path / "pictures" / f"step_{step:08d}_clips.png")
    return tmp_path


def test_reads_every_line(run_dir):
    metrics = read_metrics(run_dir)
    assert metrics["step"].tolist() == [1, 2, 2, 4, 5]
    assert metrics["split"].tolist() == ["train", "train", "val", "val", "train"]


def test_no_run_there(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file; give the run_dir"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match=r"config\.yaml: no such file; give the run_dir"):
        write_summary(tmp_path)


def test_a_config_of_another_version_is_refused(run_dir):
    with (run_dir / "config.yaml").open("a") as file:
        file.write("velocity: 3\n")
    with pytest.raises(UserError, match=r"config\.yaml: Key 'velocity'.*another version"):
        write_summary(run_dir)


def test_final_metrics_are_the_last_validation_and_the_mean_of_the_last_lines(run_dir):
    table = final_metrics(read_metrics(run_dir))
    assert table.loc["time_contrastive/accuracy"].tolist() == pytest.approx([1.61 / 3, 0.6, 0.2])
    assert table.loc["action_prediction/r2"].tolist() == pytest.approx([1.61 / 6, 0.3, 0.0])
    assert pd.isna(table.loc["loss", "chance"]) and "step" not in table.index
    assert final_accuracies(read_metrics(run_dir)) == {"time_contrastive": (0.6, 0.2)}


def test_curves_are_those_of_the_log(run_dir):
    def pixels(metrics):
        plot_curves(metrics, run_dir / "curves.png")
        return (run_dir / "curves.png").read_bytes()

    metrics = read_metrics(run_dir)
    changed = metrics.assign(**{"time_contrastive/loss": pd.Series([9.0, 1.0, 9.0, 1.0, 9.0])})
    assert pixels(metrics) == pixels(metrics.copy()) != pixels(changed)
    with Image.open(run_dir / "curves.png") as image:
        assert image.width == 13 * 110


def test_page_holds_all_of_it_and_needs_no_other_file(run_dir):
    page = write_summary(run_dir).read_text()
    for fact in (
        "not finished: step 5 of 9",
        "resnet18, 32 px",
        "time contrastive: accuracy</td><td>0.5367</td><td>0.6</td><td>0.2",
        "<code>optimizer.lr</code></td><td>0.123</td><td>0.0001",
        "7 episodes &lt;b&gt;",
        f'mcr.load_model("{run_dir / "checkpoints" / "step_00000005.pt"}")'.replace('"', "&#34;"),
        "-m mcr.training.train &#39;a.b=c d&#39;",  # the command
    ):
        assert fact in page, fact
    assert "run_dir" not in page.split("Changed from")[1].split("<h2>")[0]
    sources = re.findall(r'src="(.{22})([^"]*)"', page)
    assert {start for start, _ in sources} == {"data:image/png;base64,"}
    images = [base64.b64decode(data) for _, data in sources]
    first, last = ((run_dir / "pictures" / f"step_{s:08d}_clips.png") for s in (0, 4))
    assert images == [p.read_bytes() for p in (run_dir / "summary.png", first, last)]
    assert not list(run_dir.glob("*.partial"))


def test_a_run_that_logged_nothing_has_a_page(run_dir):
    (run_dir / "metrics.jsonl").write_text("")
    assert "step 0 of 9" in write_summary(run_dir).read_text()


def test_hardware_is_named():
    assert re.search(r"\w.*, \d+ cores, threads: \d+", hardware(torch.device("cpu")))


def test_a_config_with_an_old_key_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {views: [wrist_image_left], workers: 3}\n")
    data = load_config(tmp_path).data
    assert (data.cameras, data.workers) == (["wrist_image_left"], 3)
