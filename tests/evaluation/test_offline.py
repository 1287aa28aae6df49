"""The offline suite: each score by hand or by naive loops, then all scores of a real encoder."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from mcr.data.frames import FrameReader
from mcr.data.index import open_index
from mcr.data.selection import SelectionConfig
from mcr.errors import UserError
from mcr.evaluation.feature_health import dead_share, mean_cosine
from mcr.evaluation.intervals import bootstrap, jackknife
from mcr.evaluation.offline import (
    SCORES,
    evaluate_offline,
    offline_scores,
    order_score,
    probe_score,
    ridge_answers,
)
from mcr.evaluation.recorded_frames import Frames, OfflineConfig, held_out_sessions, read_frames
from mcr.evaluation.retrieval import camera_ranks, retrieval_scores
from mcr.evaluation.seen_sessions import seen_sessions
from mcr.models.loading import load_model
from mcr.models.untrained import write_untrained


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def frames_of(lengths, features=None, **targets):
    """Frames of episodes with these lengths, each in its own session."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.concatenate([np.arange(length) for length in lengths])
    features = np.zeros((len(rows), 1, 1)) if features is None else features
    return Frames(rows, steps, rows.astype(str), features, targets)


# --------------------------------------------------------------------------- intervals


def test_bootstrap_of_a_mean_is_the_normal_interval(rng):
    values = rng.normal(3, 2, 400)
    value, low, high = bootstrap(lambda picks: values[picks].mean(), rng, 400)
    error = values.std() / 20
    assert value == values.mean()
    assert low == pytest.approx(value - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.15 * error)


def test_bootstrap_resamples_each_sample_independently(rng):
    rows, columns = rng.normal(size=200), 3 * rng.normal(size=50)
    table = rows[:, None] + columns
    _, low, high = bootstrap(lambda r, c: table[r][:, c].mean(), rng, 200, 50)
    error = np.sqrt(rows.var() / 200 + columns.var() / 50)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_jackknife_of_a_mean_is_students_interval(rng):
    values = rng.normal(size=12)
    folds = list(np.eye(12, dtype=bool))
    value, low, high = jackknife(lambda kept: values[kept].mean(), folds)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert value == values.mean()
    assert (low, high) == pytest.approx(expected)


# --------------------------------------------------------------------------- probes and order


def test_r2_by_hand(rng):
    targets = np.array([[0.0, 10, 5], [2, 30, 5], [4, 20, 5]])  # variances 8/3, 200/3, constant
    training = frames_of([3], state=targets)
    held_out = frames_of([1, 2], state=np.array([[3.0, 20, 9], [2, 40, 9], [4, 10, 9]]))
    answer = np.array([[2.0, 20, 0], [2, 30, 0], [3, 10, 0]])
    # means 2 and 20; errors (1, 0, 1) and (0, 100, 0); of the mean (1, 0, 4) and (0, 400, 100)
    expected = 1 - (2 / (8 / 3) + 100 / (200 / 3)) / (5 / (8 / 3) + 500 / (200 / 3))
    value, low, high = probe_score(training, held_out, "state", [answer], rng)
    assert value == pytest.approx(expected)
    of_first = 1 - 1 / 1  # R^2 of each episode alone; resamples consist of these
    of_second = 1 - (1 / (8 / 3) + 1.5) / (4 / (8 / 3) + 7.5)
    assert (low, high) == pytest.approx((of_first, of_second))
    perfect = held_out.targets["state"]
    value, low, high = probe_score(training, held_out, "state", [perfect, answer], rng)
    assert value == pytest.approx((1 + expected) / 2)
    assert high == pytest.approx(1)


def test_each_dimension_has_its_own_strength(rng):
    features = rng.normal(size=(80, 1, 60))
    linear = features[:, 0] @ rng.normal(size=60)
    targets = np.stack([linear, rng.normal(size=80)], axis=1)
    training = frames_of([20] * 4, features, state=targets)
    held_features = rng.normal(size=(50, 1, 60))
    held_out = frames_of([50], held_features, state=np.zeros((50, 2)))
    answers = ridge_answers(training, held_out)["state"]
    assert answers.shape == (50, 2)
    columns = np.split(targets, 2, axis=1)
    apart = frames_of([20] * 4, features, one=columns[0], two=columns[1])
    found = ridge_answers(apart, held_out)
    np.testing.assert_allclose(answers, np.hstack([found["one"], found["two"]]), atol=1e-12)
    alone = [
        ridge_answers(frames_of([20] * 4, features, state=column), held_out)["state"]
        for column in columns
    ]
    np.testing.assert_allclose(answers, np.hstack(alone), atol=1e-12)
    assert np.abs(answers[:, 1]).std() < 0.3 < np.abs(answers[:, 0]).std()  # noise is shrunk


def test_order(rng):
    frames = frames_of([4, 3, 3, 3])
    predicted = np.array([1, 2, 4, 3, *(9, 8, 7), *(5, 5, 5), *(-1, 0, 50)])
    value, low, high = order_score(frames, predicted, rng)
    # (5 pairs in order - 1 not) / 6; none in order; all tied; all in order
    assert value == pytest.approx((4 / 6 - 1 + 0 + 1) / 4)
    assert -1 <= low < value < high <= 1


# --------------------------------------------------------------------------- retrieval


def test_ranks_by_hand():
    queries = np.array([[[1.0, 0], [0, 1]], [[0, 1], [1, 0]]])  # [frame, camera, D]
    # camera 0 queries camera 1: frame 0 has similarities (0, 1), frame 1 (1, 0); and vice versa
    np.testing.assert_array_equal(camera_ranks(queries, queries, np.arange(2)), [1, 1, 1, 1])
    same = np.stack([queries[:, 0], queries[:, 0]], axis=1)
    np.testing.assert_array_equal(camera_ranks(same, same, np.arange(2)), [0, 0, 0, 0])
    three = np.array([[1, 0], [0.6, 0.8], [0, 1]])
    candidates = np.stack([three, three[[1, 0, 2]]], axis=1)
    asking = np.stack([three, three], axis=1)
    # queries of camera 0: (0.6 1 0), (1 0.6 0.8), (0.8 0 1); then three of camera 1
    expected = [0.5, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(camera_ranks(asking, candidates, np.arange(3)), expected)


def test_constant_features_have_the_middle_rank():
    alike = np.ones((5, 2, 3)) / np.sqrt(3)
    np.testing.assert_array_equal(camera_ranks(alike, alike, np.arange(5)), np.full(10, 0.5))


def test_each_cameras_mean_feature_is_subtracted(rng):
    content = rng.normal(size=(60, 1, 8))
    cameras = 100 * rng.normal(size=(1, 2, 8))
    training, held_out = (
        frames_of([10, 20], part + cameras) for part in (content[:30], content[30:])
    )
    scores = retrieval_scores(training, held_out, rng)
    assert scores["retrieval_episode"] == scores["retrieval_all"] == (1, 1, 1)
    assert scores["rank_episode"] == scores["rank_all"] == (0, 0, 0)
    shuffled = frames_of([10, 20], np.stack([content[30:, 0], content[29::-1, 0]], axis=1))
    scores = retrieval_scores(shuffled, shuffled, rng)
    assert scores["retrieval_all"][0] < 0.2 and 0.25 < scores["rank_all"][0] < 0.75


# --------------------------------------------------------------------------- health


def test_dead_units_and_cosine(rng):
    features = rng.normal(size=(30, 5))
    features[:, 1] = 3
    features[:, 4] = 0
    assert dead_share(features) == pytest.approx(2 / 5)
    assert dead_share(np.ones((3, 2))) == 1
    naive = [
        features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
        for i in range(30)
        for j in range(30)
        if i != j
    ]
    assert mean_cosine(features) == pytest.approx(np.mean(naive))


# --------------------------------------------------------------------------- a real encoder


@pytest.fixture(scope="module")
def index(tmp_path_factory, sample):
    return open_index(sample, tmp_path_factory.mktemp("offline") / "index", workers=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("offline") / "untrained.pt"
    return load_model(write_untrained(path, "resnet18", image_size=32))


@pytest.fixture(scope="module")
def config():
    return OfflineConfig(max_episodes=8, frames_per_episode=5, num_seeds=2)


def test_frames_are_those_of_the_index(encoder, index, config):
    training, held_out = read_frames(encoder, index, config)
    assert not set(training.sessions) & set(held_out.sessions)
    assert len(held_out.episodes) == 8 and held_out.features.shape == (40, 2, 512)
    place = held_out.episodes[3].start + 2  # the middle frame of the fourth episode
    row, step = int(held_out.rows[place]), int(held_out.steps[place])
    assert step == int(np.linspace(0, index.lengths[row] - 1, 5)[2])
    assert held_out.targets["time_to_end"][place] == index.lengths[row] - 1 - step
    assert held_out.targets["state"].shape[1] == 9 + 1 + 7
    stored = index.signals[index.starts[row] + step, index.columns(("gripper_position",))]
    assert held_out.targets["state"][place, 9] == stored[0]
    for camera in range(2):
        pixels = FrameReader(index).read(row, camera, step)
        np.testing.assert_allclose(
            held_out.features[place, camera], encoder(pixels), rtol=1e-4, atol=1e-5
        )


def test_scores_of_an_untrained_encoder(encoder, index, config, monkeypatch):
    monkeypatch.setattr("mcr.evaluation.probes.MLP_STEPS", 30)
    scores = offline_scores(encoder, index, config)
    assert list(scores) == [name + part for name in SCORES for part in ("", "_low", "_high")]
    assert all(np.isfinite(value) for value in scores.values())
    for name in SCORES:
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"], name
    assert scores["retrieval_all"] <= scores["retrieval_episode"] < 0.6
    assert 1 < scores["effective_rank"] < 159  # of 160 pictures
    assert 0.5 < scores["feature_cosine"] < 1  # an untrained encoder's features differ little
    assert offline_scores(encoder, index, config) == scores


def test_one_camera_has_no_retrieval(encoder, index, monkeypatch):
    monkeypatch.setattr("mcr.evaluation.probes.MLP_STEPS", 1)
    config = OfflineConfig(["wrist_image_left"], max_episodes=4, frames_per_episode=3, num_seeds=1)
    scores = offline_scores(encoder, index, config)
    assert not any(name.startswith(("retrieval", "rank_")) for name in scores)
    assert {"state_ridge", "temporal_order", "effective_rank_high"} <= set(scores)


def provenance(index, **selection):
    """What the export of an encoder that was trained on the data says."""
    return {
        "dataset": {"fingerprint": index.fingerprint},
        "config": {"data": {"selection": {"val_fraction": 0.1, "min_frames": 40} | selection}},
    }


def test_seen_sessions_are_those_that_were_not_held_out_in_training(index):
    sessions = set(index.table["session"])
    names = index.table.loc[index.table["session"] == min(sessions), "name"]
    seen = seen_sessions(provenance(index), index)
    assert 0 < len(sessions - seen) < len(sessions)
    few = seen_sessions(provenance(index, episodes=list(names), val_fraction=0.0), index)
    assert few == {min(sessions)}
    # what a newer version of mcr adds, and lists that are not at hand, leave nothing out
    more = {"keep_ranges": "gone.json", "episodes": ["gone.txt"], "new": 1}
    assert seen_sessions(provenance(index, **more), index) == seen
    mixed = {"dataset": {"mix": {"a": {"fingerprint": "ab"}, "b": provenance(index)["dataset"]}}}
    mixed["config"] = {"data": {"mix": {"b": {"selection": {"val_fraction": 0.1}}}}}
    assert seen_sessions(mixed, index)
    unknown = {"dataset": {"fingerprint": index.signals_fingerprint}}
    assert seen_sessions(unknown, index) == sessions
    other = provenance(index) | {"dataset": {"fingerprint": "ab"}}
    assert seen_sessions(other, index) == seen_sessions({}, index) == set()


def test_an_encoder_that_has_seen_held_out_sessions_is_marked(
    encoder, index, sample, tmp_path, monkeypatch
):
    monkeypatch.setattr("mcr.evaluation.probes.MLP_STEPS", 1)
    config = OfflineConfig(max_episodes=4, frames_per_episode=3, num_seeds=1)
    path = write_untrained(tmp_path / "pretrained.pt", image_size=32, seed=4)
    content = torch.load(path) | provenance(index)
    torch.save({k: v for k, v in content.items() if k != "untrained"}, path)
    torch.save(content | {"dataset": {"fingerprint": "ab"}}, tmp_path / "foreign.pt")
    named = [f"mine={path}", f"foreign={tmp_path / 'foreign.pt'}"]
    text = evaluate_offline(named, str(sample), tmp_path, config, data_index=str(index.path))
    held_out = held_out_sessions(index, config)
    seen = len(held_out & seen_sessions(provenance(index), index))
    assert 0 < seen < len(held_out)
    assert f"mine (seen): pretrained on {seen} of the {len(held_out)} held-out sessions" in text
    assert "| mine (seen) |" in text and "| foreign |" in text and "| untrained " in text
    rows = pd.read_csv(tmp_path / "results.csv")
    assert set(rows["set"]) == {"development"}
    assert set(rows.loc[rows["encoder"] == "mine", "seen"]) == {seen}
    assert set(rows.loc[rows["encoder"] != "mine", "seen"]) == {0}
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert protocol["cameras"] == list(index.default_cameras[:2]) and protocol["num_seeds"] == 1
    again = evaluate_offline(named, str(sample), tmp_path, config, data_index=str(index.path))
    assert again == text
    other = OfflineConfig(["wrist_image_left"], max_episodes=4, frames_per_episode=3, num_seeds=2)
    with pytest.raises(UserError, match=r"another protocol \(cameras=.* num_seeds=1, not 2\)"):
        evaluate_offline(named, str(sample), tmp_path, other, data_index=str(index.path))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (OfflineConfig(cameras=["left"]), "no camera 'left'"),
        (OfflineConfig(state_keys=["torque"]), "no signal 'torque'"),
        (OfflineConfig(selection=SelectionConfig(val_fraction=0)), "must be above 0"),
    ],
)
def test_bad_configuration(encoder, index, config, complaint):
    with pytest.raises(UserError, match=complaint):
        offline_scores(encoder, index, config)


def test_counts_that_leave_nothing_to_compare_are_refused():
    with pytest.raises(UserError, match="frames_per_episode=1 must be a whole number of at"):
        OfflineConfig(frames_per_episode=1)
