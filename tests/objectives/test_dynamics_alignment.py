import math

import pytest
import torch
from torch import nn

from mcr.data.batch import EARLY, LATE, Dimensions
from mcr.errors import UserError
from mcr.objectives.dynamics_alignment import (
    DynamicsAlignment,
    DynamicsAlignmentConfig,
    flatten_windows,
)

DIMS = Dimensions(state=14, action=7, window=3)


def fix_dynamics(objective, dynamics):
    """Replace the projection by given embeddings [B, 2, D]."""

    class Fixed(nn.Module):
        def forward(self, windows):
            return dynamics

    objective.project_dynamics = Fixed()


def reference_loss(images, dynamics, config):
    """Naive float64 loops over nested lists [B][2][D]."""
    clips = range(len(images))

    def score(a, b):
        if config.similarity == "l2":
            return -math.dist(a, b) / config.temperature
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (math.hypot(*a) * math.hypot(*b)) / config.temperature

    def loss(positive, others):
        epsilon = 1e-8 if config.form == "epsilon" else 0.0
        total = math.exp(positive) + sum(math.exp(other) for other in others)
        return -math.log(epsilon + math.exp(positive) / (epsilon + total))

    directions = [(images, dynamics)]
    if config.negatives == "batch":
        directions.append((dynamics, images))
    losses = []
    for anchors, candidates in directions:
        for b in clips:
            for t in range(2):
                rivals = [(b, 1 - t)]
                if config.negatives == "batch":
                    rivals = [(c, k) for c in clips for k in range(2) if (c, k) != (b, t)]
                anchor = anchors[b][t]
                losses.append(
                    loss(
                        score(anchor, candidates[b][t]),
                        [score(anchor, candidates[c][k]) for c, k in rivals],
                    )
                )
    return sum(losses) / len(losses)


def test_windows_interleave_states_and_actions_in_time():
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    actions = torch.tensor([[10.0], [20.0]])
    assert flatten_windows(states, actions).tolist() == [1, 2, 10, 3, 4, 20, 5, 6]


def test_window_of_one_step_is_the_state_alone():
    states, actions = torch.ones(4, 2, 1, 3), torch.ones(4, 2, 0, 5)
    assert torch.equal(flatten_windows(states, actions), torch.ones(4, 2, 3))


def test_droid_window_has_56_numbers_and_the_papers_head():
    objective = DynamicsAlignment(DynamicsAlignmentConfig(), 2048, DIMS)
    first, _, last = objective.project_dynamics
    assert (first.in_features, first.out_features) == (56, 1024)
    assert (last.in_features, last.out_features) == (1024, 2048)


def test_closed_form(make_batch):
    objective = DynamicsAlignment(DynamicsAlignmentConfig(), 1, DIMS)
    fix_dynamics(objective, torch.tensor([[[1.0], [3.0]]]))
    embeddings = torch.zeros(1, 5, 1)
    embeddings[:, EARLY], embeddings[:, LATE] = 0.0, 4.0
    loss, metrics = objective(embeddings, make_batch(1, DIMS))
    # Both images have their own window at distance 1 and the other at 3:
    # -log(e^-1 / (e^-1 + e^-3)) = log(1 + e^-2).
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert metrics["accuracy"].item() == 1.0
    assert metrics["chance"].item() == 0.5


@pytest.mark.parametrize("negatives", ["pair", "batch"])
@pytest.mark.parametrize("form", ["log_softmax", "epsilon"])
@pytest.mark.parametrize("kind", ["l2", "cosine"])
def test_agrees_with_a_float64_loop(make_batch, make_embeddings, negatives, form, kind):
    config = DynamicsAlignmentConfig(
        similarity=kind, temperature=0.5, form=form, negatives=negatives, hidden_dim=16
    )
    torch.manual_seed(0)
    objective = DynamicsAlignment(config, 8, DIMS)
    batch, embeddings = make_batch(6, DIMS), make_embeddings(6, 8, distance=3.0)
    loss, _ = objective(embeddings, batch)

    windows = flatten_windows(batch.window_states, batch.window_actions)
    dynamics = objective.project_dynamics(windows).double().tolist()
    images = embeddings[:, [EARLY, LATE]].double().tolist()
    assert loss.item() == pytest.approx(reference_loss(images, dynamics, config), rel=1e-5)


def test_batch_metrics_are_against_all_windows(make_batch):
    objective = DynamicsAlignment(DynamicsAlignmentConfig(negatives="batch"), 6, DIMS)
    aligned = torch.eye(6).reshape(3, 2, 6)
    fix_dynamics(objective, aligned)
    embeddings = torch.zeros(3, 5, 6)
    embeddings[:, EARLY], embeddings[:, LATE] = aligned[:, 0], aligned[:, 1]
    _, metrics = objective(embeddings, make_batch(3, DIMS))
    assert metrics["batch_accuracy"].item() == 1.0
    assert metrics["batch_chance"].item() == pytest.approx(1 / 6)
    assert metrics["chance"].item() == 0.5

    # Clips exchanged: every window now meets another clip's picture.
    fix_dynamics(objective, aligned.roll(1, dims=0))
    _, metrics = objective(embeddings, make_batch(3, DIMS))
    assert metrics["batch_accuracy"].item() == 0.0


def test_random_resnet50_saturates_the_epsilon_form(make_batch, make_embeddings):
    """The paper's run begins with embeddings of norm 43 and projections close to the origin."""
    gradients = {}
    for form in ("epsilon", "log_softmax"):
        torch.manual_seed(0)
        objective = DynamicsAlignment(DynamicsAlignmentConfig(form=form), 2048, DIMS)
        embeddings = make_embeddings(8, 2048, distance=43 * 2**0.5)
        loss, _ = objective(embeddings, make_batch(8, DIMS))
        loss.backward()
        gradients[form] = embeddings.grad.norm()
        if form == "epsilon":
            assert loss.item() == pytest.approx(18.42, abs=0.005)
    assert 100 < gradients["log_softmax"] / gradients["epsilon"] < 400


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"negatives": "pairs"}, "did you mean 'pair'"),
        ({"hidden_dim": 0}, "hidden_dim=0 must be a whole number of at least 1"),
        ({"form": "epsilonn"}, "did you mean 'epsilon'"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(UserError, match=message):
        DynamicsAlignmentConfig(**option)


@pytest.mark.parametrize("negatives", ["pair", "batch"])
def test_a_learned_temperature_begins_as_a_fixed_one_and_learns(
    make_batch, make_embeddings, negatives
):
    batch, embeddings = make_batch(6, DIMS), make_embeddings(6, 8)

    def build(temperature, learn):
        torch.manual_seed(0)
        config = DynamicsAlignmentConfig(
            temperature=temperature, negatives=negatives, learn_temperature=learn
        )
        return DynamicsAlignment(config, 8, DIMS)

    learning = build(0.5, True)
    loss, metrics = learning(embeddings, batch)
    assert loss.item() == pytest.approx(build(0.5, False)(embeddings, batch)[0].item(), rel=1e-6)
    assert metrics["temperature"].item() == 0.5
    loss.backward()
    assert learning.log_gain.grad.abs() > 0
    # with a gain of 4, the temperature is 0.125
    learning.log_gain.data.fill_(math.log(4))
    loss, metrics = learning(embeddings, batch)
    assert metrics["temperature"].item() == pytest.approx(0.125)
    assert loss.item() == pytest.approx(build(0.125, False)(embeddings, batch)[0].item(), rel=1e-5)
    learning.log_gain.data.fill_(100)
    assert learning(embeddings, batch)[1]["temperature"].item() == pytest.approx(0.01)


def test_layer_norm_makes_the_length_of_embeddings_irrelevant(make_batch, make_embeddings):
    batch, embeddings = make_batch(6, DIMS), make_embeddings(6, 8)
    for layer_norm in (True, False):
        torch.manual_seed(0)
        objective = DynamicsAlignment(DynamicsAlignmentConfig(layer_norm=layer_norm), 8, DIMS)
        losses = [objective(scale * embeddings, batch)[0].item() for scale in (1, 7)]
        assert (losses[1] == pytest.approx(losses[0], rel=1e-4)) == layer_norm
