import pytest
import torch

from mcr.data.batch import UNNAMED
from mcr.training.balance import LossBalance, pull
from mcr.training.optimizer import OptimizerConfig
from mcr.training.pretrainer import embedding_gradients
from tests.training.one_step import ALONE, make_engine, whole_batch


def test_pull_is_the_norm_for_one_image():
    """The loss is a mean over 2 clips of 5 frames; each frame's gradient is (3, 4) / 10."""
    embeddings = torch.zeros(2, 5, 2, requires_grad=True)
    loss = (embeddings * torch.tensor([3.0, 4.0])).sum(-1).mean()
    assert pull(loss, embeddings).item() == pytest.approx(5)


def test_factors_in_closed_form():
    balance = LossBalance(["weak", "strong"])
    assert [factor.item() for factor in balance.factors().values()] == pytest.approx([1, 1])
    embeddings = torch.zeros(1, 5, 1, requires_grad=True)
    losses = {"weak": embeddings.mean(), "strong": 16 * embeddings.mean()}
    balance.observe(losses, embeddings)
    factors = {name: f.item() for name, f in balance.factors().items()}
    # the geometric mean of 1 and 16 is 4
    assert factors == pytest.approx({"weak": 4, "strong": 1 / 4})
    # The average of 16 and 0 with decay 0.99, without a bias towards its beginning.
    balance.observe({"weak": embeddings.mean(), "strong": 0 * embeddings.mean()}, embeddings)
    strong = 16 * 0.99 / 1.99
    factors = {name: f.item() for name, f in balance.factors().items()}
    assert factors["weak"] == pytest.approx(strong**0.5)
    assert factors["weak"] * factors["strong"] == pytest.approx(1)


def test_a_loss_without_gradient_keeps_factors_finite():
    balance = LossBalance(["none", "some"])
    embeddings = torch.zeros(1, 5, 1, requires_grad=True)
    balance.observe({"none": 0 * embeddings.mean(), "some": embeddings.mean()}, embeddings)
    assert all(factor.isfinite() for factor in balance.factors().values())


def test_the_gradients_of_a_step_are_in_the_ratio_of_the_weights():
    """Before, the strongest is at least twice the weakest."""
    strengths = {}
    for balanced in (False, True):
        still = OptimizerConfig(lr=0)  # the second pass then sees the same heads
        engine = make_engine(ALONE, balance_losses=balanced, num_negatives=0, optimizer=still)
        engine.model.loss_weights["time_contrastive"] = 0.5
        batches = {UNNAMED: whole_batch()}
        step = engine.step([batches])
        found = embedding_gradients(engine.model, step.embeddings, batches)
        strengths[balanced] = [value.item() for value in found.values()]
    assert max(strengths[False]) > 2 * min(strengths[False])
    dynamics, action, time = strengths[True]
    assert action == pytest.approx(dynamics, rel=1e-3)
    assert time == pytest.approx(0.5 * dynamics, rel=1e-3)


def test_validation_does_not_count():
    engine = make_engine(ALONE, balance_losses=True)
    batches = {UNNAMED: whole_batch()}
    engine.step([batches])
    before = {name: value.clone() for name, value in engine.model.balances.state_dict().items()}
    engine.evaluate(batches)
    after = engine.model.balances.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
