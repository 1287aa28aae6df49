import pytest
import torch
from torch import nn

from mcr.data.batch import Dimensions
from mcr.errors import UserError
from mcr.objectives.action_prediction import (
    ActionPrediction,
    ActionPredictionConfig,
    explained_variance,
)

DIMS = Dimensions(state=14, action=7, window=3)


def test_the_papers_head():
    objective = ActionPrediction(ActionPredictionConfig(), 2048, DIMS)
    linears = [m for m in objective.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [
        (2048, 50),
        (50, 512),
        (512, 512),
        (512, 7),
    ]
    assert [type(m) for m in objective.trunk] == [nn.Linear, nn.LayerNorm, nn.Tanh]


def test_closed_form(make_batch):
    objective = ActionPrediction(ActionPredictionConfig(), 4, DIMS)
    nn.init.zeros_(objective.actor[-1].weight)
    nn.init.constant_(objective.actor[-1].bias, 3.0)
    batch = make_batch(2, DIMS)
    batch.actions = torch.zeros(2, 5, 7)
    batch.actions[1] = 2.0
    loss, metrics = objective(torch.ones(2, 5, 4), batch)
    assert loss.item() == 5.0  # half of the errors are 3, half 1
    assert metrics["r2"].item() == -4.0  # answering the mean, 1, would cost 1


def test_agrees_with_a_float64_loop(make_batch, make_embeddings):
    torch.manual_seed(0)
    objective = ActionPrediction(ActionPredictionConfig(), 8, DIMS)
    batch, embeddings = make_batch(4, DIMS), make_embeddings(4, 8)
    loss, _ = objective(embeddings, batch)
    double = objective.double()
    errors = []
    for clip, actions in zip(embeddings.double(), batch.actions.double(), strict=True):
        for frame, action in zip(clip, actions, strict=True):
            predicted = double.actor(double.trunk(frame[None]))[0]
            errors += [(p - a) ** 2 for p, a in zip(predicted.tolist(), action, strict=True)]
    assert loss.item() == pytest.approx(float(sum(errors) / len(errors)), rel=1e-5)


def test_every_frame_counts(make_batch, make_embeddings):
    objective = ActionPrediction(ActionPredictionConfig(), 8, DIMS)
    embeddings = make_embeddings(3, 8)
    objective(embeddings, make_batch(3, DIMS))[0].backward()
    assert (embeddings.grad.norm(dim=-1) > 0).all()


def test_explained_variance_is_0_for_the_mean_and_1_for_the_truth():
    targets = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)) + 10
    mean_error = (targets - targets.mean((0, 1))).square().mean()
    assert explained_variance(mean_error, targets).item() == pytest.approx(0, abs=1e-5)
    assert explained_variance(torch.tensor(0.0), targets).item() == 1.0


@pytest.mark.parametrize("size", ["feature_dim", "hidden_dim"])
def test_empty_layers_are_refused(size):
    with pytest.raises(UserError, match=f"{size}=0 must be a whole number of at least 1"):
        ActionPredictionConfig(**{size: 0})
