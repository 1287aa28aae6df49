"""Probes: ridge regression against the normal equations, R² by hand, and a real encoder."""

import numpy as np
import pytest
import torch

from mcr.data.frames import FrameReader
from mcr.data.index import open_index
from mcr.data.selection import SelectionConfig, select_episodes
from mcr.errors import UserError
from mcr.evaluation.probes import (
    MOST_STD,
    STRENGTHS,
    embed_steps,
    mlp_predictions,
    probe_encoder,
    ridge_predictions,
    ridge_score,
)
from mcr.models.backbones import build_backbone
from mcr.models.loading import load_model


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.mark.parametrize("num_rows", [12, 200])  # fewer and more than features
def test_ridge_equals_the_normal_equations(generator, num_rows):
    features = generator.normal(3, 2, (num_rows, 40))
    targets, queries = generator.normal(5, 1, (num_rows, 3)), generator.normal(3, 2, (7, 40))
    x = (features - features.mean(0)) / features.std(0)
    for strength, predicted in zip(
        STRENGTHS, ridge_predictions(features, targets, queries), strict=True
    ):
        penalty = strength * num_rows * np.eye(40)
        weights = np.linalg.solve(x.T @ x + penalty, x.T @ (targets - targets.mean(0)))
        expected = (queries - features.mean(0)) / features.std(0) @ weights + targets.mean(0)
        np.testing.assert_allclose(predicted, expected, rtol=1e-6)


def test_a_unit_that_training_hardly_knows_decides_no_prediction(generator):
    features, targets = generator.normal(size=(60, 5)), generator.normal(size=(60, 2))
    features[:, 3] = 0
    features[7, 3] = 1e-3  # active in one picture
    groups = np.repeat(["a", "b", "c"], 20)
    edge = generator.normal(size=(4, 5)).clip(-2, 2)
    edge[:, 3] = features[:, 3].mean() + MOST_STD * features[:, 3].std()
    far = edge.copy()
    far[:, 3] = 1.0  # 8,000 standard deviations
    for predict in (
        ridge_predictions,
        lambda *rows: mlp_predictions(*rows[:2], groups, rows[2], 0),
    ):
        at_the_edge, beyond = predict(features, targets, edge), predict(features, targets, far)
        np.testing.assert_allclose(beyond, at_the_edge, rtol=1e-9)


def test_predictions_do_not_depend_on_scale_and_offset(generator):
    features, held = generator.normal(size=(60, 5)), generator.normal(size=(20, 5))
    weights = generator.normal(size=(5, 2))
    groups = np.repeat(["a", "b", "c"], 20)
    noise, held_noise = generator.normal(size=(60, 2)), generator.normal(size=(20, 2))
    targets, held_targets = features @ weights + noise, held @ weights + held_noise
    plain = ridge_score(features, targets, groups, held, held_targets)
    units, scales = np.array([1000, 0.001]), np.array([1, 10, 100, 0.1, 5])
    other = ridge_score(
        features * scales + 3,
        targets * units - 7,
        groups,
        held * scales + 3,
        held_targets * units - 7,
    )
    assert 0.5 < plain < 0.95
    assert other == pytest.approx(plain, abs=1e-9)


def test_r2_is_1_for_linear_targets_and_about_0_for_noise(generator):
    features, held = generator.normal(size=(300, 10)), generator.normal(size=(300, 10))
    groups = np.repeat(np.arange(6), 50)
    weights = generator.normal(size=(10, 2))
    constant = np.full((300, 1), 4.0)  # a constant dimension is left out
    linear = np.hstack([features @ weights, constant]), np.hstack([held @ weights, constant])
    assert ridge_score(features, linear[0], groups, held, linear[1]) > 0.9999
    noise = generator.normal(size=(2, 300, 2))
    assert abs(ridge_score(features, noise[0], groups, held, noise[1])) < 0.05


def test_strength_is_chosen_by_validation_on_other_groups(generator):
    # The features identify the group, and the target is constant in each. Other groups are unknown.
    groups = np.repeat(np.arange(5), 40)
    features = np.eye(5)[groups] + 0.01 * generator.normal(size=(200, 5))
    targets = generator.normal(size=5)[groups][:, None]
    score = ridge_score(features, targets, groups, np.zeros((9, 5)), np.ones((9, 1)))
    shuffled = ridge_predictions(features, targets, features)[0]
    assert np.abs(shuffled - targets).max() < 0.05  # within groups, features can memorise it
    assert abs(score) < 0.2  # so a strong penalty was chosen


def test_a_single_session_is_refused(generator):
    with pytest.raises(UserError, match="of the one session 'x'"):
        ridge_score(
            np.ones((4, 1)), np.arange(4.0)[:, None], np.array(["x"] * 4), *[np.ones((1, 1))] * 2
        )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("probe") / "resnet18.pth"
    torch.save(build_backbone("resnet18").state_dict(), path)
    return load_model(path)


def test_features_of_all_cameras_are_concatenated(encoder, shards):
    index = open_index(shards, workers=1)
    steps = np.array([[0, 3], [2, 5]])
    cameras = [index.cameras[2], index.cameras[0]]
    features = embed_steps(encoder, index, steps, cameras)
    assert features.shape == (2, 2 * 512)
    frame = FrameReader(index).read(2, 0, 5)
    np.testing.assert_allclose(features[1, 512:], encoder(frame), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="camera.*left"):
        embed_steps(encoder, index, steps, ["left"])


def test_probes_of_a_real_encoder(encoder, shards, monkeypatch):
    monkeypatch.setattr("mcr.evaluation.probes.FRAMES_PER_EPISODE", 6)
    index = open_index(shards, workers=1)
    episodes, _ = select_episodes(index, SelectionConfig(min_frames=30))
    training, held_out = episodes.of(np.arange(3)), episodes.of(np.arange(3, 4))
    keys = ["cartesian_position", "gripper_position"]
    scores = probe_encoder(encoder, index, training, held_out, index.cameras[:1], keys, "euler")
    assert set(scores) == {"state", "action", "time"}
    assert all(np.isfinite(score) and score <= 1 for score in scores.values())
    with pytest.raises(UserError, match="val_fraction"):
        probe_encoder(encoder, index, training, episodes.of(np.arange(0)), index.cameras[:1], keys)


def test_network_fits_a_nonlinear_target(generator):
    features, held = generator.normal(size=(600, 4)), generator.normal(size=(200, 4))
    groups = np.arange(600) // 100
    targets, held_targets = (np.abs(x[:, :1]) * [[1, -50]] + 7 for x in (features, held))
    assert ridge_score(features, targets, groups, held, held_targets) < 0.05
    predicted = mlp_predictions(features, targets, groups, held, seed=0)
    error = ((predicted - held_targets) ** 2).mean(0) / held_targets.var(0)
    assert (error < 0.1).all()


def test_network_predicts_the_mean_from_noise(generator):
    features, held = generator.normal(size=(120, 50)), generator.normal(size=(40, 50))
    targets, groups = generator.normal(3, 1, size=(120, 2)), np.arange(120) // 30
    predicted = mlp_predictions(features, targets, groups, held, seed=1)
    assert np.abs(predicted - targets.mean(0)).max() < 0.5  # stopped before it overfits


def test_network_depends_on_the_seed_only(generator):
    features, targets = generator.normal(size=(60, 3)), generator.normal(size=(60, 1))
    targets += features[:, :1]
    groups = np.arange(60) // 20
    state = torch.random.get_rng_state()
    with torch.no_grad():  # the caller may have switched gradients off
        first, again, other = (
            mlp_predictions(features, targets, groups, features, seed) for seed in (0, 0, 1)
        )
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
