"""Recorded demonstrations: the format, actions without noise, reproducibility."""

import json

import h5py
import numpy as np
import pytest

from mcr.features.recordings import open_recordings
from mcr.simulation.recorder import record_demonstrations
from mcr.simulation.simulator import PictureConfig
from mcr.simulation.tasks import make_simulator

TASK = "metaworld/button-press"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The path, and the value of record_demonstrations."""
    path = tmp_path_factory.mktemp("recorded") / "new" / "press.hdf5"
    return path, record_demonstrations(
        TASK, path, 2, 0.2, seed=1, masks=True, pictures=PictureConfig(48)
    )


def test_layout(recorded):
    path, made = recorded
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        length = demo.attrs["num_samples"]
        assert {key: (value.shape, value.dtype.name) for key, value in demo["obs"].items()} == {
            "corner2_image": ((length, 48, 48, 3), "uint8"),
            "corner2_mask": ((length, 48, 48), "uint8"),
            "proprioception": ((length, 4), "float32"),
        }
        assert demo["obs/corner2_image"].chunks == (1, 48, 48, 3)
        assert demo["actions"].shape == (length, 4) and demo["actions"].dtype == np.float32
        assert demo["dones"][-1] == 1 and demo["dones"][0] == 0
        assert np.array_equal(demo["rewards"], demo["dones"])
        assert set(np.unique(demo["obs/corner2_mask"])) == {0, 1}
        assert file["data"].attrs["total"] == made.steps
        about = json.loads(file["data"].attrs["env_args"])
        assert about["task"] == TASK and about["cameras"] == ["corner2"]
        assert about["picture_size"] == 48
        assert list(file["mask/train"]) == [b"demo_0"] and list(file["mask/valid"]) == [b"demo_1"]
    assert made.demonstrations == 2 <= made.attempts
    assert [each.name for each in path.parent.iterdir()] == ["press.hdf5"]


def test_recorded_actions_are_the_experts_without_noise(recorded):
    """In the same scene the expert's first action is the recorded one, but it leads elsewhere."""
    simulator = make_simulator(TASK, PictureConfig(48))
    with h5py.File(recorded[0]) as file:
        demo = file["data/demo_1"]
        observation = simulator.reset(int(demo.attrs["seed"]))
        for key, value in observation.items():
            assert np.array_equal(demo["obs"][key][0], value)
        assert np.array_equal(demo["actions"][0], simulator.expert())
        assert np.array_equal(demo["obs/corner2_mask"][0], simulator.masks()["corner2"])
        following, _ = simulator.step(demo["actions"][0])
        assert not np.array_equal(demo["obs/proprioception"][1], following["proprioception"])
    simulator.close()


def test_same_seed_gives_the_same_demonstrations(recorded, tmp_path):
    record_demonstrations(TASK, tmp_path / "again.hdf5", 2, 0.2, seed=1, pictures=PictureConfig(48))
    with h5py.File(recorded[0]) as one, h5py.File(tmp_path / "again.hdf5") as two:
        for key in ("actions", "obs/corner2_image"):
            assert np.array_equal(one[f"data/demo_1/{key}"], two[f"data/demo_1/{key}"])
        assert "corner2_mask" not in two["data/demo_1/obs"]


def test_feature_caches_read_it(recorded):
    recordings = open_recordings(recorded[0])
    assert recordings.cameras == ("corner2_image",) and len(recordings.names) == 2
