"""Features instead of pictures: the file, rollouts and the training loop give the same ones."""

import json

import h5py
import numpy as np
import pytest
import robomimic.utils.env_utils as env_utils
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
import torch

from mcr import UserError, load_model
from mcr.robomimic import EncoderConv
from mcr.robomimic.cached_features import OnlineFeatures, write_features

NAMES = ["agentview_image_features", "robot0_eye_in_hand_image_features"]


@pytest.fixture(scope="module")
def cached(lift, encoder_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("cached") / "features.hdf5"
    assert write_features(lift, path, encoder_path) == NAMES
    return path


def test_features_are_those_of_the_backbone(cached, lift, encoder_path):
    """In the loop, robomimic gives a backbone pictures divided by 255, channels first."""
    backbone = EncoderConv(weights=encoder_path)
    with h5py.File(lift) as old, h5py.File(cached) as new:
        for group in ("obs", "next_obs"):
            pictures = old[f"data/demo_2/{group}/agentview_image"][:5]
            inputs = torch.from_numpy(obs_utils.process_obs(pictures, obs_modality="rgb"))
            features = new[f"data/demo_2/{group}/agentview_image_features"][:5]
            torch.testing.assert_close(torch.from_numpy(features), backbone(inputs).detach())


def test_everything_else_is_copied(cached, lift):
    with h5py.File(lift) as old, h5py.File(cached) as new:
        demo = new["data/demo_1"]
        assert not any("image" in key and key not in NAMES for key in demo["obs"])
        for key in ("actions", "states", "obs/robot0_eef_pos", "next_obs/object"):
            assert np.array_equal(demo[key], old["data/demo_1"][key])
        assert dict(demo.attrs) == dict(old["data/demo_1"].attrs)
        assert list(new["mask/train"]) == list(old["mask/train"])
        assert new["data"].attrs["total"] == old["data"].attrs["total"]
        features = json.loads(new["data"].attrs["env_args"])["env_kwargs"]["features"]
        assert features["keys"] == [name.removesuffix("_features") for name in NAMES]


def test_rollouts_compute_the_same_features(cached, lift, encoder_path):
    specs = {"obs": {"low_dim": [*NAMES, "robot0_eef_pos"], "rgb": []}}
    obs_utils.initialize_obs_utils_with_obs_specs(specs)
    simulator = env_utils.create_env_from_metadata(
        file_utils.get_env_metadata_from_dataset(cached), use_image_obs=False
    )
    simulator.reset()
    with h5py.File(cached) as file:
        demo = file["data/demo_0"]
        simulator.reset_to({"model": demo.attrs["model_file"], "states": demo["states"][0]})
        observation = simulator.reset_to({"states": demo["states"][7]})
        recorded = {name: demo["obs"][name][7] for name in NAMES}
    for name in NAMES:
        assert observation[name].shape == (512,)
        distance = np.linalg.norm(observation[name] - recorded[name])
        assert distance < 0.1 * np.linalg.norm(recorded[name])  # of a picture 2 ms later
    raw = simulator.env._get_observations(force_update=True)["agentview_image"][::-1]
    expected = load_model(encoder_path)(raw)
    torch.testing.assert_close(torch.from_numpy(observation[NAMES[0]]), expected)
    stepped, *_ = simulator.step(np.zeros(7))
    assert stepped[NAMES[1]].shape == (512,)


def test_another_encoder_is_refused(cached, vit_path):
    features = file_utils.get_env_metadata_from_dataset(cached)["env_kwargs"]["features"]
    with pytest.raises(UserError, match="not the encoder whose features"):
        OnlineFeatures(**features | {"weights": vit_path})


def test_an_existing_file_and_a_lack_of_pictures_are_refused(cached, lift, encoder_path, tmp_path):
    with pytest.raises(UserError, match="exists"):
        write_features(lift, cached, encoder_path)
    with pytest.raises(UserError, match="no picture"):
        write_features(cached, tmp_path / "again.hdf5", encoder_path)
    assert list(tmp_path.iterdir()) == []
