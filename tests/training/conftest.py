"""A run that takes seconds: a ResNet-18 on the reference shards, with pictures of 32 pixels."""

import pytest
from omegaconf import OmegaConf

from mcr.training.config import Config


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
