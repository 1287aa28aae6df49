"""Ensembles: each policy equals one that is trained alone, by a plain loop over torch's layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mcr.errors import UserError
from mcr.policies.ensemble import (
    EnsembleConfig,
    EnsembleNetwork,
    PolicyEnsemble,
    train_policies,
)
from mcr.policies.heads import HEADS

N, D, P, A = 50, 6, 3, 2


def samples(seed=0):
    rng = np.random.default_rng(seed)
    features, low_dim = rng.normal(2, 3, (N, D)), rng.normal(1, 2, (N, P))
    actions = np.tanh(features[:, :A] + 0.3 * low_dim[:, :A])
    return [values.astype(np.float32) for values in (features, low_dim, actions)]


def maps(seed=0, count=N):
    """Maps [N, V, K, h, w] of two cameras. Actions are the place of a bright spot in the first."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 0.3, (count, 2, 4, 3, 3)).astype(np.float32)
    rows, columns = rng.integers(0, 3, (2, count))
    features[np.arange(count), 0, 1, rows, columns] += 5
    actions = np.stack([columns - 1, rows - 1], axis=1)
    return features, rng.normal(size=(count, P)).astype(np.float32), actions


def small(**changes):
    return EnsembleConfig(**{"hidden": [16, 8], "batch_size": 20, "epochs": 4} | changes)


class Plain(nn.Module):
    """The same policy, written with torch's layers."""

    def __init__(self, start: EnsembleNetwork, low_dim):
        super().__init__()
        self.low_dim = torch.from_numpy(low_dim)
        self.norm = nn.BatchNorm1d(D)
        modules = []
        for layer in start.network.layers:
            fan_in, fan_out = layer.weight.shape[1:]
            linear = nn.Linear(fan_in, fan_out)
            linear.weight.data, linear.bias.data = (
                layer.weight[0].T.clone(),
                layer.bias[0, 0].clone(),
            )
            modules += [linear, nn.ReLU()]
        self.body = nn.Sequential(*modules[:-1])

    def forward(self, features, low_dim):
        low_dim = (low_dim - self.low_dim.mean(0)) / self.low_dim.std(0, correction=0)
        return self.body(torch.cat([self.norm(features), low_dim], -1))


def test_ensemble_of_one_is_a_plain_training():
    features, low_dim, actions = samples()
    config, seed = small(), 7
    ensemble = train_policies(features, low_dim, actions, config, [seed])

    plain = Plain(EnsembleNetwork(config, [D, P, A], [seed]), low_dim)
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3)
    order = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(config.epochs):
        total = 0.0
        for rows in torch.randperm(N, generator=order).tensor_split(3):  # 17, 17, 16 <= 20
            x, z, y = (torch.from_numpy(values)[rows] for values in (features, low_dim, actions))
            loss = ((plain(x, z) - y) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / N)
    assert ensemble.losses[:, 0].tolist() == pytest.approx(losses, rel=1e-4)
    expected = plain.eval()(torch.from_numpy(features), torch.from_numpy(low_dim)).detach().numpy()
    found = ensemble.act(np.zeros(N, int), features, low_dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_unit_that_demonstrations_hardly_know_decides_no_action():
    features, low_dim, actions = samples()
    features[:, 5] = 0
    features[3, 5] = 0.1  # active at one step
    ensemble = train_policies(features, low_dim, actions, small(epochs=40), [0])
    far = np.repeat(features[:1], 2, axis=0)
    far[:, 5] = [1e3, 1e6]
    moderate, extreme = ensemble.act(np.zeros(2, int), far, np.repeat(low_dim[:1], 2, axis=0))
    np.testing.assert_array_equal(moderate, extreme)
    assert np.abs(extreme - ensemble.act(np.zeros(1, int), features[:1], low_dim[:1])).max() < 3


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("feature_norm", "dropout"), [("batch_norm", 0.3), ("layer_norm", 0.0), ("none", 0.5)]
)
def test_each_seed_equals_a_separate_training(head, feature_norm, dropout):
    features, low_dim, actions = samples()
    config = small(head=head, feature_norm=feature_norm, dropout=dropout, modes=3)
    seeds = [3, 0, 11]
    together = train_policies(features, low_dim, actions, config, seeds)
    assert len(together) == 3
    for policy, seed in enumerate(seeds):
        alone = train_policies(features, low_dim, actions, config, [seed])
        torch.testing.assert_close(together.losses[:, policy], alone.losses[:, 0])
        np.testing.assert_allclose(
            together.act(np.full(N, policy), features, low_dim),
            alone.act(np.zeros(N, int), features, low_dim),
            atol=1e-4,
        )
    assert len({tuple(losses.tolist()) for losses in together.losses.T}) == 3


def test_policies_on_maps_equal_separate_trainings():
    features, low_dim, actions = maps()
    together = train_policies(features, low_dim, actions, small(dropout=0.2), [3, 0])
    assert together.network.norm.weight.shape[-1] == 2 * 4 * (4 + 2)
    for policy, seed in enumerate([3, 0]):
        alone = train_policies(features, low_dim, actions, small(dropout=0.2), [seed])
        torch.testing.assert_close(together.losses[:, policy], alone.losses[:, 0])
        np.testing.assert_allclose(
            together.act(np.full(N, policy), features, low_dim),
            alone.act(np.zeros(N, int), features, low_dim),
            atol=1e-4,
        )
    assert not torch.equal(together.losses[:, 0], together.losses[:, 1])


def test_policies_on_maps_see_where_something_is(tmp_path):
    """The mean over places does not tell where the spot is."""
    config = small(epochs=25, learning_rate=1e-2)
    features, low_dim, actions = maps(count=200)
    others, signals, expected = maps(seed=1)
    rows = np.zeros(N, int)
    ensemble = train_policies(features.astype(np.float16), low_dim, actions, config, [0])
    found = ensemble.act(rows, others, signals)
    assert np.square(found - expected).mean() < 0.3 * expected.var()
    means = features.mean(axis=(3, 4)).reshape(200, -1)
    blind = train_policies(means, low_dim, actions, config, [0])
    pooled = blind.act(rows, others.mean(axis=(3, 4)).reshape(N, -1), signals)
    assert np.square(pooled - expected).mean() > 0.7 * expected.var()
    ensemble.save(tmp_path / "policies.pt")
    loaded = PolicyEnsemble.load(tmp_path / "policies.pt")
    np.testing.assert_array_equal(loaded.act(rows, others, signals), found)


def test_features_of_maps_may_have_any_scale():
    """Each feature of each camera is standardised, so that encoders are treated alike."""
    features, low_dim, actions = maps()
    scale = np.exp(np.random.default_rng(2).normal(0, 3, (2, 4, 1, 1)))
    one = train_policies(features, low_dim, actions, small(), [0])
    other = train_policies(features * scale + 7, low_dim, actions, small(), [0])
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-2, atol=1e-3)


def test_rows_may_ask_any_policies_in_any_order():
    features, low_dim, actions = samples()
    ensemble = train_policies(features, low_dim, actions, small(), [0, 1, 2, 3])
    policies = np.random.default_rng(0).choice([0, 1, 3], N)  # policy 2 has finished its episodes
    mixed = ensemble.act(policies, features, low_dim)
    for row in range(N):
        alone = ensemble.act(policies[row : row + 1], features[row, None], low_dim[row, None])
        np.testing.assert_allclose(mixed[row], alone[0], atol=1e-6)
    assert ensemble.act([], np.zeros((0, D)), np.zeros((0, P))).shape == (0, A)


def test_dropout_keeps_the_mean_and_acts_in_training_only():
    network = EnsembleNetwork(small(dropout=0.25), [D, P, A], [0, 1])
    values = torch.ones(2, 400, 100)
    dropped = network.network.dropout(values)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped, network.network.dropout(values))
    assert torch.equal(network.eval().network.dropout(values), values)


def test_it_learns():
    features, low_dim, actions = samples()
    config = small(epochs=150, learning_rate=1e-2)
    ensemble = train_policies(features, low_dim, actions, config, [0, 1])
    assert (ensemble.losses[-1] < 0.1 * ensemble.losses[0]).all()
    rows = np.ones(N, int)
    error = np.square(ensemble.act(rows, features, low_dim) - actions).mean()
    assert error < 0.2 * actions.var()


def test_without_low_dimensional_signals():
    features, _, actions = samples()
    nothing = np.zeros((N, 0), np.float32)
    ensemble = train_policies(features, nothing, actions, small(), [0])
    assert ensemble.act([0], features[:1], nothing[:1]).shape == (1, A)


def test_a_chunk_begins_with_the_action():
    features, low_dim, actions = samples()
    config = small(chunk=3, epochs=200, learning_rate=1e-2, feature_norm="none")
    ensemble = train_policies(features, low_dim, actions, config, [0], lengths=[30, 20])
    rows = np.zeros(N, int)
    chunks = ensemble.act_chunk(rows, features, low_dim)
    assert chunks.shape == (N, 3, A)
    np.testing.assert_array_equal(chunks[:, 0], ensemble.act(rows, features, low_dim))
    demonstrated = np.stack([actions[:28], actions[1:29], actions[2:30]], axis=1)
    assert np.square(chunks[:28] - demonstrated).mean() < 0.5 * actions.var()


def test_standardised_actions_are_returned_in_their_own_units():
    features, low_dim, actions = samples()
    actions = actions * [1000, 0.001] + [5, 0]
    config = small(standardise_actions=True, epochs=200, learning_rate=1e-2)
    ensemble = train_policies(features, low_dim, actions, config, [0])
    found = ensemble.act(np.zeros(N, int), features, low_dim)
    assert (np.square(found - actions).mean(0) < 0.2 * actions.var(0)).all()


def test_saved_and_loaded(tmp_path):
    features, low_dim, actions = samples()
    config = small(head="gmm", standardise_actions=True)
    ensemble = train_policies(features, low_dim, actions, config, [4, 5])
    ensemble.save(tmp_path / "policies.pt")
    loaded = PolicyEnsemble.load(tmp_path / "policies.pt")
    rows = np.arange(N) % 2
    np.testing.assert_array_equal(
        loaded.act(rows, features, low_dim), ensemble.act(rows, features, low_dim)
    )
    assert loaded.seeds == [4, 5] and torch.equal(loaded.losses, ensemble.losses)
    assert [path.name for path in tmp_path.iterdir()] == ["policies.pt"]
    torch.save({"format": "else"}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt: holds no policies"):
        PolicyEnsemble.load(tmp_path / "other.pt")


def test_an_ensemble_of_the_first_format_is_loaded(tmp_path):
    features, low_dim, actions = samples()
    config = small(standardise_actions=True)
    ensemble = train_policies(features, low_dim, actions, config, [4, 5])
    ensemble.save(tmp_path / "policies.pt")
    content = torch.load(tmp_path / "policies.pt")
    content["format"] = "mcr-policies-1"
    first = (("network.standardise.", "action_"), ("network.", ""), ("low_dim.", "low_dim_"))
    for now, then in first:
        content["network"] = {k.replace(now, then): v for k, v in content["network"].items()}
    assert {"layers.0.weight", "action_mean", "low_dim_std"} <= set(content["network"])
    torch.save(content, tmp_path / "first.pt")
    loaded = PolicyEnsemble.load(tmp_path / "first.pt")
    rows = np.arange(N) % 2
    np.testing.assert_array_equal(
        loaded.act(rows, features, low_dim), ensemble.act(rows, features, low_dim)
    )


def test_bad_input():
    features, low_dim, actions = samples()
    for changes, complaint in (
        ({"feature_norm": "batchnorm"}, "did you mean 'batch_norm'"),
        ({"head": "glm"}, "did you mean 'gmm'"),
        ({"epochs": 0}, "epochs=0 must be a whole number of at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be a finite number of at least 0 and below 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be a finite number above 0"),
    ):
        with pytest.raises(UserError, match=complaint):
            EnsembleConfig(**changes)
    broken = actions.copy()
    broken[3, 1] = np.nan
    for arrays, config, complaint in (
        (
            (features[:-1], low_dim, actions),
            small(),
            "different numbers of samples: {'features': 49",
        ),
        ((features[:1], low_dim[:1], actions[:1]), small(), "1 samples are too few"),
        ((features, low_dim, broken), small(), "actions hold NaN or infinity"),
        ((features[:, 0], low_dim, actions), small(), "features have the shape .*, or maps"),
        ((features, low_dim[:, 0], actions), small(), r"low_dim .*: pass \[samples, numbers\]$"),
        ((features, low_dim, actions), small(chunk=2), "chunk=2 needs the lengths"),
    ):
        with pytest.raises(UserError, match=complaint):
            train_policies(*arrays, config, [0])
    ensemble = train_policies(features, low_dim, actions, small(epochs=1), [0])
    with pytest.raises(UserError, match=r"features have the shape \[1, 5\], not \[1, 6\]"):
        ensemble.act([0], features[:1, :5], low_dim[:1])
    with pytest.raises(UserError, match="there are 1"):
        ensemble.act([1], features[:1], low_dim[:1])
