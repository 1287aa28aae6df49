"""What holds for every objective. The tests run over OBJECTIVES, so they cover a new one."""

import dataclasses
import math

import pytest
import torch
from omegaconf import OmegaConf

from mcr.data.batch import Dimensions
from mcr.errors import UserError
from mcr.objectives import OBJECTIVES, OFF_BY_DEFAULT, ObjectivesConfig, build_objectives

DROID = Dimensions(state=14, action=7, window=3, teacher=6)
OTHER_ROBOT = Dimensions(state=9, action=10, window=5, teacher=40)
ONE_STEP = Dimensions(state=3, action=2, window=1, teacher=1)

WEIGHTS = dict.fromkeys(OBJECTIVES, 1.0)
PAPER = {
    "dynamics_alignment": {"form": "epsilon"},
    "time_contrastive": {"form": "epsilon", "negatives": "permutation"},
}


def build(name, dims, embed_dim=32, options=None):
    torch.manual_seed(0)
    config_class, objective_class = OBJECTIVES[name]
    return objective_class(config_class(**(options or {})), embed_dim, dims)


def as_config(options):
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ObjectivesConfig), options))


@pytest.mark.parametrize("dims", [DROID, OTHER_ROBOT, ONE_STEP], ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_returns_float32_scalars_for_any_dimensions(make_batch, make_embeddings, name, dims):
    embeddings = make_embeddings(4, 32)
    loss, metrics = build(name, dims)(embeddings, make_batch(4, dims))
    for scalar in (loss, *metrics.values()):
        assert scalar.shape == () and scalar.dtype == torch.float32
    assert not any(metric.requires_grad for metric in metrics.values())
    loss.backward()
    assert embeddings.grad.norm() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_computes_in_float32_under_autocast(make_batch, make_embeddings, name):
    objective, batch = build(name, DROID), make_batch(4, DROID)
    embeddings = make_embeddings(4, 32).bfloat16()
    torch.manual_seed(0)
    expected, _ = objective(embeddings.float(), batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = objective(embeddings, batch)
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("distance", [0.1, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("negatives", ["pair", "batch"])
def test_finite_at_any_distance(make_batch, make_embeddings, negatives, distance):
    config = as_config({"dynamics_alignment": {"negatives": negatives}})
    objectives = build_objectives(config, WEIGHTS, 32, DROID)
    for objective in objectives.values():
        embeddings = make_embeddings(4, 32, distance)
        loss, _ = objective(embeddings, make_batch(4, DROID))
        loss.backward()
        assert torch.isfinite(loss)
        gradients = [embeddings.grad, *(p.grad for p in objective.parameters())]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert embeddings.grad.norm() > 1e-6


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in OBJECTIVES]
    + list(PAPER.items())
    + [
        ("distillation", {"distance": "mse"}),
        ("dynamics_alignment", {"negatives": "batch"}),
        ("dynamics_alignment", {"similarity": "cosine", "temperature": 0.1}),
    ],
    ids=str,
)
def test_descent_lowers_it(make_batch, make_embeddings, name, options):
    objective, batch = build(name, DROID, options=options), make_batch(8, DROID)
    embeddings = make_embeddings(8, 32)
    optimizer = torch.optim.Adam([embeddings, *objective.parameters()], lr=3e-3)
    losses = []
    for _ in range(150):
        loss, _ = objective(embeddings, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# ---- building them


def test_config_has_one_field_per_objective():
    fields = {
        f.name: type(getattr(ObjectivesConfig(), f.name))
        for f in dataclasses.fields(ObjectivesConfig)
    }
    assert fields == {name: config for name, (config, _) in OBJECTIVES.items()}


def test_builds_all_with_their_configs():
    objectives = build_objectives(as_config(PAPER), WEIGHTS, 32, DROID)
    assert list(objectives) == list(OBJECTIVES)
    assert objectives["time_contrastive"].config.negatives == "permutation"
    assert objectives["dynamics_alignment"].config.form == "epsilon"


def test_weight_0_builds_no_head():
    weights = WEIGHTS | {"action_prediction": 0.0}
    objectives = build_objectives(ObjectivesConfig(), weights, 32, DROID)
    assert list(objectives) == [name for name in OBJECTIVES if name != "action_prediction"]


def test_those_that_are_off_by_default_may_be_left_out_of_the_weights():
    weights = {name: 1.0 for name in OBJECTIVES if name not in OFF_BY_DEFAULT}
    assert len(weights) == 3
    objectives = build_objectives(ObjectivesConfig(), weights, 32, DROID)
    assert list(objectives) == list(weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WEIGHTS | {"dynamics_aligment": 1.0}, "did you mean 'dynamics_alignment'"),
        ({"action_prediction": 1.0}, "lacks dynamics_alignment, time_contrastive"),
        ({}, "lacks"),
        (WEIGHTS | {"time_contrastive": -1.0}, "time_contrastive=-1.0 must be finite"),
        (WEIGHTS | {"time_contrastive": math.nan}, "time_contrastive=nan must be finite"),
        (WEIGHTS | {"time_contrastive": math.inf}, "time_contrastive=inf must be finite"),
        (dict.fromkeys(OBJECTIVES, 0.0), "all loss_weights are 0"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        build_objectives(ObjectivesConfig(), weights, 32, DROID)


def test_bad_options_are_refused_through_omegaconf():
    with pytest.raises(UserError, match="did you mean 'log_softmax'"):
        as_config({"time_contrastive": {"form": "log-softmax"}})
