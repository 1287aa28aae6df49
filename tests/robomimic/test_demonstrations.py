"""Recorded demonstrations: they follow robomimic's conventions, and replay gives their pictures."""

import json

import h5py
import numpy as np
import pytest
import robomimic.utils.env_utils as env_utils
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset

from mcr import UserError
from mcr.robomimic.demonstrations import CAMERAS, record_lift
from mcr.robomimic.simulator import RobosuiteSimulator

PROPRIOCEPTION = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


@pytest.fixture
def demos(lift):
    with h5py.File(lift, "r") as file:
        yield file


def test_layout_is_robomimics(demos):
    assert list(demos["data"]) == [f"demo_{i}" for i in range(4)]
    total = 0
    for demo in demos["data"].values():
        steps = demo.attrs["num_samples"]
        total += steps
        assert demo["actions"].shape == (steps, 7)
        assert np.abs(demo["actions"][:]).max() <= 1
        assert len(demo["states"]) == len(demo["rewards"]) == len(demo["dones"]) == steps
        assert demo.attrs["model_file"].startswith("<mujoco")
        for group in ("obs", "next_obs"):
            for camera in CAMERAS:
                pictures = demo[group][f"{camera}_image"]
                assert (pictures.shape, pictures.dtype) == ((steps, 84, 84, 3), np.uint8)
            for key, width in PROPRIOCEPTION.items():
                assert demo[group][key].shape == (steps, width)
    assert demos["data"].attrs["total"] == total
    env_args = json.loads(demos["data"].attrs["env_args"])
    assert {"env_name", "type", "env_kwargs", "env_version"} <= env_args.keys()


def test_masks_split_the_demonstrations(demos, lift):
    train, valid = (file_utils.get_demos_for_filter_key(lift, key) for key in ("train", "valid"))
    assert sorted(train + valid) == list(demos["data"])
    assert valid == ["demo_3"]


def test_every_demonstration_ends_in_success_and_moves_on(demos):
    for demo in demos["data"].values():
        assert demo["dones"][-1] == 1 and demo["rewards"][-1] == 1
        assert demo["dones"][0] == 0
        for key in ("agentview_image", "robot0_eef_pos"):
            assert np.array_equal(demo["next_obs"][key][:-1], demo["obs"][key][1:])


def test_initial_states_differ(demos):
    cubes = [demo["obs/object"][0, :3] for demo in demos["data"].values()]
    assert len({tuple(np.round(cube, 5)) for cube in cubes}) == len(cubes)


def test_pictures_stand_upright_and_show_the_cube(demos):
    """The robot's base is behind the table, at the upper edge; the red cube below it."""
    picture = demos["data/demo_0/obs/agentview_image"][0].astype(float)
    red = picture[..., 0] - picture[..., 1:].max(axis=-1) > 60
    assert 5 < red.sum() < 200
    dark = picture.max(axis=-1) < 60
    assert np.nonzero(dark)[0].mean() < np.nonzero(red)[0].mean()


def test_robomimics_dataset_reads_it(lift):
    keys = (*PROPRIOCEPTION, "agentview_image")
    obs_utils.initialize_obs_modality_mapping_from_dict(
        {"rgb": ["agentview_image"], "low_dim": list(PROPRIOCEPTION)}
    )
    data = SequenceDataset(
        hdf5_path=str(lift),
        obs_keys=keys,
        dataset_keys=("actions", "rewards", "dones"),
        seq_length=5,
        hdf5_cache_mode="low_dim",
        hdf5_normalize_obs=False,
        filter_by_attribute="train",
    )
    sample = data[0]
    assert sample["obs"]["agentview_image"].shape == (5, 84, 84, 3)
    assert sample["obs"]["agentview_image"].dtype == np.uint8
    assert sample["next_obs"]["robot0_eef_pos"].shape == (5, 3)


def test_replayed_states_give_the_recorded_pictures(demos, lift):
    """Made from the metadata alone, as rollouts and playback make it."""
    specs = {"obs": {"rgb": [f"{camera}_image" for camera in CAMERAS]}}
    obs_utils.initialize_obs_utils_with_obs_specs(specs)
    simulator = env_utils.create_env_from_metadata(
        file_utils.get_env_metadata_from_dataset(lift), use_image_obs=True
    )
    assert isinstance(simulator, RobosuiteSimulator)
    demo = demos["data/demo_1"]
    simulator.reset()
    simulator.reset_to({"model": demo.attrs["model_file"], "states": demo["states"][0]})
    for step in (0, 10, len(demo["states"]) - 1):
        observation = simulator.reset_to({"states": demo["states"][step]})
        for camera in CAMERAS:
            recorded = obs_utils.process_obs(demo[f"obs/{camera}_image"][step], obs_modality="rgb")
            difference = np.abs(np.asarray(observation[f"{camera}_image"]) - recorded)
            # robosuite observes a moving robot one physics step, 2 ms, before the state it tells
            assert difference.mean() < 0.01, (camera, step)
        np.testing.assert_allclose(
            observation["robot0_eef_pos"], demo["obs/robot0_eef_pos"][step], atol=2e-3
        )


def test_an_existing_file_is_not_overwritten(lift):
    with pytest.raises(UserError, match="exists: give another name"):
        record_lift(lift)
