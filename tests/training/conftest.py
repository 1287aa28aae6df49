"""A run that takes seconds: a ResNet-18 on the reference shards, with pictures of 32 pixels."""

import json
import sys

import pytest
from omegaconf import OmegaConf
from PIL import Image

from mcr.training.config import Config
from mcr.training.run_folder import save_launch


@pytest.fixture(scope="session")
def make_tiny():
    """make_tiny(run_dir=..., **overrides) -> Config; nested keys as "data.workers"."""

    def make(**overrides) -> Config:
        options = {
            "steps": 4,
            "batch_size": 4,
            "log_every": 1,
            "validate_every": 2,
            "save_every": 2,
            "val_clips": 8,
            "pictures_every": 0,
            "device": "cpu",
            "model.backbone": "resnet18",
            "model.image_size": 32,
            "optimizer.lr": 1e-3,
            "data.workers": 0,
            "data.selection.min_frames": 30,
            "data.selection.val_fraction": 0.25,
        }
        config = OmegaConf.structured(Config)
        for key, value in (options | overrides).items():
            OmegaConf.update(config, key, value)
        return OmegaConf.to_object(config)

    return make


@pytest.fixture
def tiny(make_tiny, shards, tmp_path):
    """`make_tiny` with a run folder and a copy of the data for this test alone."""

    def make(**overrides) -> Config:
        return make_tiny(**{"run_dir": str(tmp_path / "run"), "data.root": str(shards)} | overrides)

    return make


@pytest.fixture
def run_dir(tmp_path, tiny, monkeypatch):
    """The folder of a run after a few steps."""
    lines = [
        _line(1, "train", 0.21),
        _line(2, "train", 0.5),
        _line(2, "val", 0.4),
        _line(4, "val", 0.6),
        _line(5, "train", 0.9),
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


def _line(step, split, accuracy):
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
