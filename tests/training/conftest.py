"""A run small enough for seconds: ResNet-18 on 32 pixel pictures of the reference shards."""

import pytest
from omegaconf import OmegaConf

from mcr.training.config import Config


@pytest.fixture
def tiny(shards, tmp_path):
    """tiny(**overrides) -> Config; nested keys as "data.workers"."""

    def make(**overrides) -> Config:
        options = {
            "run_dir": str(tmp_path / "run"),
            "steps": 4,
            "batch_size": 4,
            "log_every": 1,
            "validate_every": 2,
            "save_every": 2,
            "val_clips": 8,
            "device": "cpu",
            "model.backbone": "resnet18",
            "model.image_size": 32,
            "optimizer.lr": 1e-3,
            "data.root": str(shards),
            "data.workers": 0,
            "data.selection.min_frames": 30,
            "data.selection.val_fraction": 0.25,
        }
        config = OmegaConf.structured(Config)
        for key, value in (options | overrides).items():
            OmegaConf.update(config, key, value)
        return OmegaConf.to_object(config)

    return make
