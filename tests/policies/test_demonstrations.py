"""Demonstrations: each format gives the recorded arrays, and errors name what is broken."""

from __future__ import annotations

import re
import shutil

import h5py
import numpy as np
import pytest

from mcr.data.index import open_index
from mcr.errors import UserError
from mcr.features.recordings import open_recordings
from mcr.policies.demonstrations import DemonstrationConfig, open_demonstrations

LENGTHS = (5, 3, 4)


def write_hdf5(path, lengths=LENGTHS, size=16, masks=False, seed=0):
    """robomimic's format: two cameras, three signals, the privileged `object`."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for number, length in enumerate(lengths):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = rng.uniform(-1, 1, (length, 4))
            for name, width in (("eef_pos", 3), ("gripper", 1), ("object", 10)):
                demo[f"obs/{name}"] = rng.normal(size=(length, width))
            for camera in ("front_image", "wrist_image"):
                shape = (length, size, size, 3)
                demo[f"obs/{camera}"] = rng.integers(0, 256, shape, dtype=np.uint8)
            demo["obs/front_mask"] = np.zeros((length, size, size), np.uint8)
        if masks:
            file["mask/train"] = np.array(["demo_2", "demo_0"], dtype="S")
            file["mask/valid"] = np.array(["demo_1"], dtype="S")
    return path


def opened(path, **options):
    return open_demonstrations(DemonstrationConfig(data=str(path), **options))


def test_hdf5_as_it_was_written(tmp_path):
    path = write_hdf5(tmp_path / "demos.hdf5")
    found = opened(path)
    assert found.cameras == ("front_image", "wrist_image")
    assert found.signals == ("eef_pos", "gripper")
    with h5py.File(path) as file:
        demos = [file[f"data/demo_{number}"] for number in range(3)]
        actions = np.concatenate([demo["actions"][()] for demo in demos])
        low_dim = np.concatenate(
            [np.hstack([demo["obs/eef_pos"], demo["obs/gripper"]]) for demo in demos]
        )
        wrist = np.concatenate([demo["obs/wrist_image"][()] for demo in demos])
    np.testing.assert_array_equal(found.actions, actions.astype(np.float32))
    np.testing.assert_array_equal(found.low_dim, low_dim.astype(np.float32))
    pictures = found.pictures("wrist_image", tmp_path / "wrist.npy")
    np.testing.assert_array_equal(pictures, wrist)
    assert found.training.tolist() == [0, 2] and found.held_out.tolist() == [1]
    assert found.steps(found.held_out).tolist() == [5, 6, 7]
    assert found.steps(np.array([], np.int64)).tolist() == []


def test_the_files_own_split(tmp_path):
    found = opened(write_hdf5(tmp_path / "d.hdf5", masks=True), val_fraction=0.5)
    assert (found.training.tolist(), found.held_out.tolist()) == ([0, 2], [1])
    everything = opened(tmp_path / "d.hdf5", val_fraction=0)
    assert (everything.training.tolist(), everything.held_out.tolist()) == ([0, 1, 2], [])


def test_split_is_even_and_can_be_left_out(tmp_path):
    path = write_hdf5(tmp_path / "d.hdf5", [2] * 20)
    assert opened(path).held_out.tolist() == [5, 15]
    assert opened(path, val_fraction=0.0).held_out.tolist() == []
    assert len(opened(path, val_fraction=0.0).training) == 20
    single = write_hdf5(tmp_path / "single.hdf5", [2])
    assert opened(single).training.tolist() == [0]


def test_chosen_cameras_and_signals(tmp_path):
    path = write_hdf5(tmp_path / "d.hdf5")
    found = opened(path, cameras=["wrist_image"], low_dim=["object", "gripper"])
    assert found.cameras == ("wrist_image",)
    assert found.low_dim.shape == (12, 11)
    blind = opened(path, proprioception=False)
    assert (blind.signals, blind.low_dim.shape) == ((), (12, 0))


def test_shards_and_their_tree_alike(shards, tree, tmp_path):
    options = {"rotation": "6d", "action_space": "delta", "cameras": ["wrist_image_left"]}
    (a, b) = (opened(source, **options) for source in (shards, tree))
    np.testing.assert_array_equal(a.low_dim, b.low_dim)
    np.testing.assert_array_equal(a.actions, b.actions)
    assert a.recordings.names == b.recordings.names
    assert a.low_dim.shape[1] == 3 + 6 + 1 + 7 and a.actions.shape[1] == 3 + 6 + 1
    # each episode's rows are its own, and its pictures stand beside them
    index = open_index(shards)
    columns = index.columns(("gripper_position",))
    pictures = a.pictures("wrist_image_left", tmp_path / "pictures.npy")
    frames = open_recordings(shards)
    for row in range(len(index)):
        steps = a.steps(np.array([row]))
        recorded = index.signals[index.starts[row] + np.arange(index.lengths[row])][:, columns]
        np.testing.assert_array_equal(a.low_dim[steps, 9:10], recorded)
        first = next(frames.frames(row, "wrist_image_left"))
        np.testing.assert_array_equal(pictures[steps[0]], first)


def test_only_successes_are_used(sample, tmp_path):
    source = shutil.copytree(sample, tmp_path / "1.0.0")
    found = opened(source, val_fraction=0.2)
    outcomes = open_index(source).table["outcome"].to_numpy()
    used = np.concatenate([found.training, found.held_out])
    assert set(outcomes[used]) == {"success"} and len(used) == (outcomes == "success").sum()
    assert (outcomes == "failure").any()
    assert not set(found.training) & set(found.held_out)


def damage(path, name, values):
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values
    return path


def test_bad_input(tmp_path):
    path = write_hdf5(tmp_path / "d.hdf5")
    for options, complaint in (
        ({"cameras": ["wrist_img"]}, "d.hdf5: no camera 'wrist_img'; did you mean 'wrist_image'"),
        (
            {"low_dim": ["eef_position"]},
            "no signal 'eef_position' for .*low_dim.* 'eef_pos'",
        ),
        ({"val_fraction": 1.0}, "val_fraction=1.0 must be a finite number of at least 0"),
    ):
        with pytest.raises(UserError, match=complaint):
            opened(path, **options)
    with pytest.raises(UserError, match=r"demonstrations\.data is not set"):
        open_demonstrations(DemonstrationConfig())
    with pytest.raises(UserError, match="none.hdf5: no such file"):
        opened(tmp_path / "none.hdf5")


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        (
            "data/demo_1/actions",
            np.zeros((2, 4)),
            "data/demo_1: has different lengths: .*2 in actions",
        ),
        (
            "data/demo_1/obs/eef_pos",
            np.zeros((9, 3)),
            "data/demo_1: has different lengths: .*9 in obs/eef_pos",
        ),
        ("data/demo_2/obs/gripper", None, r"demo_2.*: lacks the signals gripper \(1\)"),
        ("data/demo_0/actions", None, r"demo_0.*: lacks the signals actions \(4\)"),
        (
            "data/demo_0/actions",
            np.zeros((5, 3)),
            r"demo_0.*: .*actions \(4\).* has actions \(3\)",
        ),
        (
            "data/demo_0/actions",
            np.full((5, 4), np.nan),
            "demo_0.*: actions is not finite at",
        ),
        (
            "data/demo_1/obs/front_image",
            np.zeros((2, 16, 16, 3), np.uint8),
            "data/demo_1: has different lengths: 2 in obs/front_image",
        ),
    ],
)
def test_a_damaged_episode_is_left_out_with_a_reason(name, values, complaint, tmp_path):
    found = opened(damage(write_hdf5(tmp_path / "d.hdf5", masks=True), name, values))
    damaged = name.split("/")[1]
    assert found.recordings.names == sorted({"demo_0", "demo_1", "demo_2"} - {damaged})
    assert len(found.actions) == sum(found.recordings.lengths)
    (problem,) = found.recordings.index.info["problems"]
    assert re.search(complaint, problem)


def test_pictures_of_two_sizes(tmp_path):
    path = write_hdf5(tmp_path / "d.hdf5")
    damage(path, "data/demo_1/obs/front_image", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"demo_1: front_image is \(8, 8\) pixels, in earlier"):
        opened(path).pictures("front_image", tmp_path / "front.npy")
