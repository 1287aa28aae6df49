"""Every command takes every reference data set, without a schema and without a camera's name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from mcr.cli import run
from mcr.data.index import open_index
from mcr.features.cache import FeatureCache
from mcr.models.untrained import write_untrained
from mcr.runs.options import recipes_folder
from mcr.training.config import Config
from mcr.training.train import train
from tests.data.formats import FORMATS, record_episodes

DATA = Path(__file__).parent / "data"
COPIED = {
    "droid": "droid_tfds/1.0.0",
    "bridge_like": "reference/oxe/bridge_like/1.0.0",
    "dict_action": "reference/oxe/dict_action/0.1.0",
    "lerobot_v3_video": "reference/lerobot/lerobot_v3_video",
    "lerobot_v3_image": "reference/lerobot/lerobot_v3_image",
}
WRITTEN = ("hdf5", "media")


@pytest.fixture(scope="module", params=[*COPIED, *WRITTEN])
def data(request, tmp_path_factory) -> Path:
    """A data set that this module may index: a copy, or one that is written here."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in COPIED:
        source = DATA / COPIED[request.param]
        return shutil.copytree(source, folder / "data" / source.name, copy_function=shutil.copyfile)
    return FORMATS[request.param](folder / "data", record_episodes())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return str(write_untrained(tmp_path_factory.mktemp("encoder") / "e.pt", "resnet18", 32))


def test_index_and_inspect(data, tmp_path, capsys):
    assert run(["index", str(data), "--workers", "1"]) == 0
    assert run(["inspect", str(data), "--out", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").stat().st_size > 1000
    report = capsys.readouterr().out
    assert all(camera in report for camera in open_index(data).cameras)


def test_extract(data, tmp_path):
    assert run(["extract", str(data), str(tmp_path / "tree"), "--workers", "1"]) == 0
    tree, original = open_index(tmp_path / "tree", workers=1), open_index(data, workers=1)
    assert int(tree.lengths.sum()) == int(original.lengths.sum())
    assert sorted(tree.lengths) == sorted(original.lengths)


def test_features(data, encoder, tmp_path):
    options = ["--engine", "torch", "--workers", "1"]
    assert run(["features", encoder, str(data), str(tmp_path / "features"), *options]) == 0
    array = FeatureCache(tmp_path / "features").array
    index = open_index(data)
    assert array.shape == (index.lengths.sum(), len(index.cameras), 512)
    assert np.ptp(array, axis=-1).min() > 0


@pytest.mark.slow
def test_offline_evaluation(data, encoder, tmp_path):
    arguments = [encoder, "--suite", "offline", "--data", str(data), "--seeds", "1"]
    assert run(["evaluate", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert any((tmp_path / "out").iterdir())


def test_training(data, tmp_path):
    overrides = [
        f"data.root={data}",
        f"run_dir={tmp_path / 'run'}",
        *("steps=2", "batch_size=2", "validate_every=2", "val_clips=2", "save_every=2"),
        *("pictures_every=0", "log_every=1", "model.image_size=32", "data.workers=0"),
        *("data.selection.val_fraction=0.5", "device=cpu"),
    ]
    index = open_index(data)
    if not index.action:
        overrides += ["loss_weights.action_prediction=0"]
    ConfigStore.instance().store(name="config", node=Config)
    with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
        config = OmegaConf.to_object(compose("demo", overrides=overrides))
    assert train(config).is_file()
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert tuple(saved.data.cameras) == index.default_cameras
    assert tuple(saved.data.state_keys) == index.state
    assert saved.data.selection.min_frames > 0
