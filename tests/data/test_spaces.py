"""Spaces are compared with rotation matrices that are written out here. The code uses SciPy."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from mcr.data.batch import UNNAMED
from mcr.data.index import Index, open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.other_data import read_other_data
from mcr.data.selection import Episodes
from mcr.data.spaces import ACTION_SPACES, action_space, signal_space
from mcr.data.statistics import space_statistics
from mcr.errors import UserError
from mcr.models.preprocessing import Preprocessing
from mcr.objectives import OBJECTIVES, ObjectivesConfig
from mcr.training.pretrainer import Pretrainer, SignalNormaliser

STATES = ("cartesian_position", "gripper_position", "joint_position")
SIZES = {
    ("default", "euler"): 7,
    ("default", "6d"): 10,
    ("cartesian_position", "euler"): 7,
    ("cartesian_position", "6d"): 10,
    ("cartesian_velocity", "euler"): 7,
    ("cartesian_velocity", "6d"): 7,
    ("joint_position", "euler"): 8,
    ("joint_position", "6d"): 8,
    ("joint_velocity", "euler"): 8,
    ("joint_velocity", "6d"): 8,
    ("delta", "euler"): 7,
    ("delta", "6d"): 10,
}


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory, reference, sample):
    """Indexes of the two data sets in the repository."""
    folder = tmp_path_factory.mktemp("indexes")
    return {
        "reference": open_index(reference, folder / "reference", workers=1),
        "sample": open_index(sample, folder / "sample", workers=1),
    }


@pytest.fixture(params=["reference", "sample"])
def index(request, data_sets):
    return data_sets[request.param]


def matrix(angles):
    """Rz(c) Ry(b) Rx(a): turned about the fixed x by a, then y by b, then z by c. [n, 3, 3]"""
    a, b, c = np.asarray(angles, np.float64).T
    zero, one = np.zeros_like(a), np.ones_like(a)

    def rows(*entries):
        return np.stack(entries, -1).reshape(-1, 3, 3)

    x = rows(one, zero, zero, zero, np.cos(a), -np.sin(a), zero, np.sin(a), np.cos(a))
    y = rows(np.cos(b), zero, np.sin(b), zero, one, zero, -np.sin(b), zero, np.cos(b))
    z = rows(np.cos(c), -np.sin(c), zero, np.sin(c), np.cos(c), zero, zero, zero, one)
    return z @ y @ x


def angles_of(m):
    """The inverse of `matrix`, for |b| < pi / 2."""
    return np.stack(
        [
            np.arctan2(m[:, 2, 1], m[:, 2, 2]),
            np.arcsin(-m[:, 2, 0]),
            np.arctan2(m[:, 1, 0], m[:, 0, 0]),
        ],
        -1,
    )


def six(m):
    return np.concatenate([m[:, :, 0], m[:, :, 1]], -1)


def expected_action(index, name, rotation):
    """The action of every step in a space, computed in float64."""
    stored = {
        key: np.asarray(index.signals[:, begin:end], np.float64)
        for key, (begin, end) in index.info["columns"].items()
    }
    kind = "position" if name == "delta" else name.partition("_")[2] or "position"
    gripper = stored[f"action_dict/gripper_{kind}"]
    if name == "default" and rotation == "euler":
        return stored["action"]
    if name == "delta":
        observed, commanded = stored["cartesian_position"], stored["action_dict/cartesian_position"]
        turn = matrix(observed[:, 3:]).transpose(0, 2, 1) @ matrix(commanded[:, 3:])
        numbers = six(turn) if rotation == "6d" else angles_of(turn)
        return np.concatenate([commanded[:, :3] - observed[:, :3], numbers, gripper], 1)
    arm = stored[f"action_dict/{'cartesian_position' if name == 'default' else name}"]
    if rotation == "6d" and name in ("default", "cartesian_position"):
        arm = np.concatenate([arm[:, :3], six(matrix(arm[:, 3:]))], 1)
    return np.concatenate([arm, gripper], 1)


def every_step(index):
    return np.arange(index.info["total_steps"])


@pytest.mark.parametrize(("name", "rotation"), SIZES)
def test_actions_are_what_their_space_says(index, name, rotation):
    space = action_space(index, name, rotation)
    got = space.read(index.signals, every_step(index))
    assert got.dtype == np.float32
    assert got.shape[1] == space.size == SIZES[name, rotation]
    assert np.allclose(got, expected_action(index, name, rotation), atol=2e-6)


def test_every_action_space_is_tested():
    assert {name for name, _ in SIZES} == set(ACTION_SPACES)


def test_only_the_pose_of_the_states_changes(index):
    euler, six_d = (signal_space(index, STATES, rotation) for rotation in ("euler", "6d"))
    a, b = (space.read(index.signals, every_step(index)) for space in (euler, six_d))
    assert (euler.size, six_d.size) == (14, 17)
    assert np.array_equal(np.delete(a, [3, 4, 5], 1), np.delete(b, range(3, 9), 1))
    assert np.allclose(b[:, 3:9], six(matrix(a[:, 3:6])), atol=1e-6)


def test_a_pose_that_is_not_first_changes_too(index):
    keys = ("gripper_position", "cartesian_position")
    got = signal_space(index, keys, "6d").read(index.signals, every_step(index))
    first = signal_space(index, keys[::-1], "6d").read(index.signals, every_step(index))
    assert np.array_equal(got, np.roll(first, 1, axis=1))


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 3)])
def test_steps_may_have_any_shape(index, shape):
    space = action_space(index, "delta", "6d")
    steps = np.random.default_rng(0).integers(0, index.info["total_steps"], shape)
    got = space.read(index.signals, steps)
    assert got.shape == (*shape, 10)
    flat = space.read(index.signals, steps.reshape(-1))
    assert np.array_equal(got.reshape(-1, 10), flat)


def of_pose(index, name, rotation, observed, commanded):
    """The numbers of a space for given poses, [n, D]."""
    signals = np.zeros((len(observed), index.info["num_signals"]), np.float32)
    signals[:, index.columns(("cartesian_position",))] = observed
    signals[:, index.columns(("action_dict/cartesian_position",))] = commanded
    return action_space(index, name, rotation).read(signals, np.arange(len(observed)))


def test_a_command_to_stay_is_zero_and_identity(index):
    generator = np.random.default_rng(1)
    poses = np.concatenate(
        [generator.normal(size=(50, 3)), generator.uniform(-3, 3, (50, 3)) * [1, 0.5, 1]], 1
    )
    euler = of_pose(index, "delta", "euler", poses, poses)
    assert np.allclose(euler, 0, atol=1e-6)
    six_d = of_pose(index, "delta", "6d", poses, poses)
    assert np.allclose(six_d, [0, 0, 0, 1, 0, 0, 0, 1, 0, 0], atol=1e-6)


def test_an_angle_that_wraps_is_a_small_change(index):
    rest = [0.5, 0.0, 0.3]
    before, after = [*rest, np.pi - 0.01, 0.1, 0.2], [*rest, -np.pi + 0.01, 0.1, 0.2]
    poses = np.array([before, after], np.float32)
    euler = of_pose(index, "cartesian_position", "euler", poses, poses)
    six_d = of_pose(index, "cartesian_position", "6d", poses, poses)
    assert np.abs(np.diff(euler, axis=0)).max() > 6
    assert np.linalg.norm(np.diff(six_d, axis=0)) == pytest.approx(0.02, rel=0.05)
    delta = of_pose(index, "delta", "euler", poses[:1], poses[1:])
    assert np.allclose(delta[0, :3], 0) and np.allclose(np.linalg.norm(delta[0, 3:6]), 0.02, 0.01)


# --------------------------------------------------------------------------- other robots


@pytest.fixture
def other_robot(tree):
    """other_robot(change) -> index of the tree; `change` is applied to each other_data."""

    def make(change):
        for path in tree.glob("*/other_data.pkl"):
            data = read_other_data(path)
            change(data)
            path.write_bytes(pickle.dumps(data))
        return open_index(tree)

    return make


def test_without_action_dict_only_the_default_space_exists(other_robot):
    index = other_robot(lambda data: data.pop("action_dict"))
    assert action_space(index, "default", "euler").size == 7
    for name in set(ACTION_SPACES) - {"default"}:
        with pytest.raises(UserError, match=f"data.action_space={name}; it has action, cartesian"):
            action_space(index, name, "euler")
    assert action_space(index, "default", "6d").size == 10  # the schema says that it is a pose


def test_motion_is_the_first_space_that_the_data_has(other_robot):
    def without(name):
        def change(data):
            for action in data["action_dict"]:
                action.pop(name, None)

        return other_robot(change)

    def same(index, name):
        return action_space(index, "motion", "6d").name == action_space(index, name, "6d").name

    assert same(without("nothing"), "cartesian_velocity")
    assert same(without("cartesian_velocity"), "delta")
    assert same(without("cartesian_position"), "default")


@pytest.mark.parametrize("action", [[0.1] * 7, [0.1] * 3])
def test_an_action_that_is_no_pose_stays_as_it_is(other_robot, action):
    index = other_robot(lambda data: data.update(action=[np.array(action)] * len(data["action"])))
    space = action_space(index, "default", "6d")
    assert space.size == len(action)
    assert np.allclose(space.read(index.signals, np.arange(5)), action)
    assert signal_space(index, STATES, "6d").size == 17


def test_a_pose_of_another_size_is_refused(other_robot):
    quaternions = [np.array([0.5, 0, 0.3, 0, 0, 0, 1])]
    index = other_robot(
        lambda data: data.update(cartesian_position=quaternions * len(data["action"]))
    )
    assert signal_space(index, STATES, "euler").size == 15
    for make in (
        lambda: signal_space(index, STATES, "6d"),
        lambda: action_space(index, "delta", "euler"),
    ):
        with pytest.raises(UserError, match=r"cartesian_position .*three Euler angles"):
            make()


def test_unknown_spaces_are_refused(index):
    with pytest.raises(UserError, match="did you mean 'joint_velocity'"):
        action_space(index, "joint_velocty", "euler")
    for space in (lambda r: action_space(index, "delta", r), lambda r: signal_space(index, (), r)):
        with pytest.raises(UserError, match=r"data.rotation='quat'.*6d"):
            space("quat")


# --------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("name", ["default", "delta"])
def test_statistics_are_those_of_all_steps(index, name):
    space = action_space(index, name, "6d")
    values = expected_action(index, name, "6d")
    statistics = space_statistics(index, space)
    assert np.allclose(statistics["mean"], values.mean(0), atol=1e-6)
    assert np.allclose(statistics["std"], values.std(0), atol=1e-6)
    assert np.allclose(statistics["q01"], np.quantile(values, 0.01, axis=0), atol=1e-5)
    assert np.allclose(statistics["q99"], np.quantile(values, 0.99, axis=0), atol=1e-5)


def test_chunks_and_subsamples_add_up(index, monkeypatch):
    space = signal_space(index, STATES, "euler")
    whole = space_statistics(index, space)
    (index.path / "statistics.json").unlink()
    monkeypatch.setattr("mcr.data.statistics._CHUNK", 37)
    monkeypatch.setattr("mcr.data.statistics._MAX_STEPS_FOR_PERCENTILES", 100)
    parts = space_statistics(index, space)
    for key in ("mean", "std"):
        assert np.allclose(parts[key], whole[key], rtol=1e-9, atol=1e-12)
    stride = -(-index.info["total_steps"] // 100)
    sample = index.signals[::stride, space.columns]
    assert np.allclose(parts["q99"], np.quantile(sample, 0.99, axis=0))


def test_statistics_are_kept_with_the_index(shards):
    index = open_index(shards, workers=1)
    states, actions = signal_space(index, STATES, "6d"), action_space(index, "delta", "6d")
    first = space_statistics(index, states), space_statistics(index, actions)
    path = index.path / "statistics.json"
    content = json.loads(path.read_text())
    assert set(content) == {states.name, actions.name}
    content[actions.name]["mean"][0] = 7.0  # the file is what is read
    path.write_text(json.dumps(content))
    assert space_statistics(index, states) == first[0]
    assert space_statistics(index, actions)["mean"][0] == 7.0
    assert [p.name for p in index.path.iterdir() if "partial" in p.name] == []
    path.write_text("{")
    with pytest.raises(UserError, match=r"statistics.json: damaged"):
        space_statistics(index, states)


def test_statistics_that_cannot_be_kept_are_computed(shards, capsys):
    index = open_index(shards, workers=1)
    space = signal_space(index, STATES, "euler")
    expected = space_statistics(index, space)
    (index.path / "statistics.json").unlink()
    (index.path / "statistics.json").mkdir()  # a place that cannot be written, even by root
    assert space_statistics(index, space) == expected
    assert "computed anew for every run" in capsys.readouterr().out
    assert [p.name for p in index.path.iterdir() if "partial" in p.name] == []


# --------------------------------------------------------------------------- batches


def first_batch(index, count, **options):
    config = DataConfig(workers=0, **options)
    clips = ClipDataset(index, Episodes(np.arange(len(index))), config, seed=0)
    return clips, next(iter(ClipLoader(clips, config, count)))


def statistics_of(index, clips):
    return {
        "state": space_statistics(index, clips.state_space),
        "action": space_statistics(index, clips.action_space),
    }


@pytest.fixture(scope="module")
def shuffled(data_sets, tmp_path_factory):
    """The sample's index with its steps in random order.

    Clips begin and end where episodes do, where the gripper is open, say. In random order what is
    left of a batch's mean is no longer due to that.
    """
    folder = tmp_path_factory.mktemp("shuffled") / "index"
    index = Index(shutil.copytree(data_sets["sample"].path, folder))
    np.random.default_rng(0).permutation(index.signals).tofile(folder / "signals.f32")
    return index


@pytest.mark.parametrize(
    ("name", "rotation"),
    [("default", "euler"), ("delta", "euler"), *((name, "6d") for name in ACTION_SPACES)],
)
def test_normalised_batches_are_normalised(shuffled, name, rotation):
    clips, batch = first_batch(shuffled, 300, action_space=name, rotation=rotation)
    assert clips.dimensions == batch.dimensions
    normalised = SignalNormaliser(statistics_of(shuffled, clips))(batch)
    for values in (normalised.actions, normalised.window_states, normalised.window_actions):
        values = values.flatten(0, -2)
        assert values.mean(0).abs().max() < 0.1
        assert values.std(0).min() > 0.5 and values.std(0).max() < 2
    raw = batch.window_states.flatten(0, -2)
    assert raw.mean(0).abs().max() > 1 and raw.std(0).min() < 0.1


def test_a_constant_signal_is_only_shifted(other_robot):
    index = other_robot(lambda d: d.update(gripper_position=[np.array([0.3])] * len(d["action"])))
    clips, batch = first_batch(index, 2)
    normalised = SignalNormaliser(statistics_of(index, clips))(batch)
    assert normalised.window_states[..., 9].abs().max() < 1e-6  # after xyz and 6-D


def test_normalising_changes_the_losses_that_see_signals(data_sets):
    index = data_sets["reference"]
    clips, batch = first_batch(index, 4, rotation="6d")
    losses = []
    for statistics in ({}, {UNNAMED: statistics_of(index, clips)}):
        torch.manual_seed(0)
        weights = dict.fromkeys(OBJECTIVES, 1.0) | {"distillation": 0.0}
        size = Preprocessing.for_size(32)
        model = Pretrainer(
            "resnet18", size, ObjectivesConfig(), weights, {UNNAMED: batch.dimensions}, statistics
        )
        metrics = model({UNNAMED: batch})[1]
        losses.append({key: float(v) for key, v in metrics.items() if "/loss" in key})
    raw, normalised = losses
    for name in ("dynamics_alignment/loss", "action_prediction/loss"):
        assert abs(raw[name] - normalised[name]) > 1e-3
    assert raw["time_contrastive/loss"] == normalised["time_contrastive/loss"]


def test_a_dataset_with_computed_spaces_travels_to_workers(data_sets):
    clips, batch = first_batch(data_sets["reference"], 4, action_space="delta", rotation="6d")
    copy = pickle.loads(pickle.dumps(clips)).load([0, 1, 2, 3]).batch
    for field in dataclasses.fields(batch):
        assert (getattr(batch, field.name) == getattr(copy, field.name)).all(), field.name
