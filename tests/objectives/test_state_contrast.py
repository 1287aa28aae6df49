import math

import pytest
import torch

from mcr.data.batch import EARLY, END, LATE, MIDDLE, START, Dimensions
from mcr.errors import UserError
from mcr.objectives.state_contrast import StateContrast, StateContrastConfig

DIMS = Dimensions(state=4, action=7, window=3)


def reference_loss(images, states, config):
    """Naive float64 loops over lists: images [N][D], states [N][S]."""

    def score(a, b):
        if config.similarity == "l2":
            return -math.dist(a, b) / config.temperature
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (math.hypot(*a) * math.hypot(*b)) / config.temperature

    def alike(a, b):
        return -math.dist(a, b) / math.sqrt(len(a)) / config.state_temperature

    losses = []
    for i in range(len(images)):
        others = [j for j in range(len(images)) if j != i]
        weights = [math.exp(alike(states[i], states[j])) for j in others]
        scores = [math.exp(score(images[i], images[j])) for j in others]
        chances = [s / sum(scores) for s in scores]
        losses.append(
            -sum(w / sum(weights) * math.log(p) for w, p in zip(weights, chances, strict=True))
        )
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["l2", "cosine"])
def test_agrees_with_a_float64_loop(make_batch, make_embeddings, kind):
    config = StateContrastConfig(similarity=kind, temperature=0.5, state_temperature=0.7)
    batch, embeddings = make_batch(4, DIMS), make_embeddings(4, 6, distance=2.0)
    loss, _ = StateContrast(config, 6, DIMS)(embeddings, batch)
    images = embeddings[:, [EARLY, LATE]].flatten(0, 1).double().tolist()
    states = batch.window_states[:, :, 1].flatten(0, 1).double().tolist()
    assert loss.item() == pytest.approx(reference_loss(images, states, config), rel=1e-5)
    loss.backward()
    assert embeddings.grad[:, [EARLY, LATE]].abs().sum() > 0
    assert not embeddings.grad[:, [START, MIDDLE, END]].any()


def test_closed_form(make_batch):
    """Two clips on a line. Pictures lie as their states do: nothing is left to learn."""
    batch = make_batch(2, Dimensions(state=1, action=7, window=3))
    places = torch.tensor([[0.0, 1.0], [3.0, 6.0]])
    batch.window_states = places[:, :, None, None].expand(2, 2, 3, 1).clone()
    batch.window_states[:, :, 0] = 100  # only the middle of a window counts
    embeddings = torch.zeros(2, 5, 1)
    embeddings[:, [EARLY, LATE], 0] = places
    config = StateContrastConfig(similarity="l2", temperature=0.3, state_temperature=0.3)
    loss, metrics = StateContrast(config, 1, Dimensions(1, 7, 3))(embeddings, batch)
    assert metrics["divergence"].item() == pytest.approx(0, abs=1e-6)
    assert loss.item() > 0
    # If all pictures are one, p is uniform over the three others.
    blind, metrics = StateContrast(config, 1, Dimensions(1, 7, 3))(torch.zeros(2, 5, 1), batch)
    assert blind.item() == pytest.approx(math.log(3))
    assert metrics["divergence"].item() == pytest.approx(metrics["blind_divergence"].item())
    assert metrics["blind_divergence"].item() > 0.1


def test_equal_states_and_equal_pictures_give_finite_gradients(make_batch):
    batch = make_batch(2, DIMS)
    batch.window_states = torch.zeros(2, 2, 3, 4)
    embeddings = torch.zeros(2, 5, 3, requires_grad=True)
    for kind in ("l2", "cosine"):
        loss, _ = StateContrast(StateContrastConfig(similarity=kind), 3, DIMS)(embeddings, batch)
        loss.backward()
        assert embeddings.grad.isfinite().all()


def test_data_without_states_is_refused():
    with pytest.raises(UserError, match=r"state_contrast is above 0.*data\.state_keys"):
        StateContrast(StateContrastConfig(), 3, Dimensions(0, 7, 3))
