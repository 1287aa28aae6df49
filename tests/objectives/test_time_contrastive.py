import math

import pytest
import torch

from mcr.data.batch import EARLY, LATE, MIDDLE, Dimensions
from mcr.errors import UserError
from mcr.objectives.contrast import choose_other_clips
from mcr.objectives.time_contrastive import TimeContrastive, TimeContrastiveConfig

DIMS = Dimensions(state=14, action=7, window=3)


def on_a_line(*rows):
    """Embeddings [B, 5, 1] from (early, middle, late) per clip."""
    embeddings = torch.zeros(len(rows), 5, 1)
    embeddings[:, [EARLY, MIDDLE, LATE], 0] = torch.tensor(rows)
    return embeddings


def reference_loss(embeddings, config, chosen):
    """Naive float64 loops; `chosen` [2, B, n] are the negatives of the anchors LATE and EARLY."""
    epsilon = 1e-8 if config.form == "epsilon" else 0.0
    clips = embeddings.double().tolist()

    def weight(a, b):
        return math.exp(-math.dist(a, b) / config.temperature)

    losses = []
    for anchor, far, others in ((LATE, EARLY, chosen[0]), (EARLY, LATE, chosen[1])):
        for clip, negatives in zip(clips, others.tolist(), strict=True):
            positive = weight(clip[anchor], clip[MIDDLE])
            total = positive + weight(clip[anchor], clip[far])
            total += sum(weight(clip[anchor], clips[other][anchor]) for other in negatives)
            losses.append(-math.log(epsilon + positive / (epsilon + total)))
    return sum(losses) / len(losses)


def test_closed_form_within_a_clip(make_batch):
    # LATE: near 1, far 3. EARLY: near 2, far 3. No other clips.
    objective = TimeContrastive(TimeContrastiveConfig(num_negatives=0), 1, DIMS)
    loss, metrics = objective(on_a_line((0.0, 2.0, 3.0)), make_batch(1, DIMS))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert loss.item() == pytest.approx(expected)
    assert metrics["accuracy"].item() == 1.0
    assert metrics["chance"].item() == 0.5


def test_closed_form_with_another_clip(make_batch):
    # Two clips 10 apart: one negative each, whatever the draw.
    objective = TimeContrastive(TimeContrastiveConfig(), 1, DIMS)
    loss, metrics = objective(on_a_line((0.0, 1.0, 3.0), (10.0, 11.0, 13.0)), make_batch(2, DIMS))
    late = math.log(math.exp(-2) + math.exp(-3) + math.exp(-10)) + 2
    early = math.log(math.exp(-1) + math.exp(-3) + math.exp(-10)) + 1
    assert loss.item() == pytest.approx((late + early) / 2)
    assert metrics["chance"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("negatives", ["others", "permutation"])
@pytest.mark.parametrize("form", ["log_softmax", "epsilon"])
def test_agrees_with_a_float64_loop(make_batch, make_embeddings, negatives, form):
    config = TimeContrastiveConfig(form=form, negatives=negatives, temperature=0.7)
    embeddings = make_embeddings(6, 8, distance=3.0)
    torch.manual_seed(3)
    loss, _ = TimeContrastive(config, 8, DIMS)(embeddings, make_batch(6, DIMS))
    torch.manual_seed(3)
    chosen = [choose_other_clips(6, 3, negatives, torch.device("cpu")) for _ in range(2)]
    assert loss.item() == pytest.approx(reference_loss(embeddings, config, chosen), rel=1e-5)


def test_accuracy_sees_other_clips_and_order_accuracy_does_not(make_batch):
    # In order, but both clips start at the same place, and the second one's end, 9, is nearer to
    # the first one's, 3, than to its own middle, 2.
    objective = TimeContrastive(TimeContrastiveConfig(), 1, DIMS)
    _, metrics = objective(on_a_line((0.0, 2.0, 3.0), (0.0, 2.0, 9.0)), make_batch(2, DIMS))
    assert metrics["order_accuracy"].item() == 1.0
    assert metrics["accuracy"].item() == 0.25


def test_gradient_is_finite_when_late_is_the_middle_frame(make_batch, make_embeddings):
    embeddings = make_embeddings(4, 8).detach()
    embeddings[:, LATE] = embeddings[:, MIDDLE]
    embeddings.requires_grad_()
    for negatives in ("others", "permutation"):
        objective = TimeContrastive(TimeContrastiveConfig(negatives=negatives), 8, DIMS)
        loss, _ = objective(embeddings, make_batch(4, DIMS))
        (gradient,) = torch.autograd.grad(loss, embeddings)
        assert torch.isfinite(gradient).all()


def test_one_clip_needs_no_negatives_or_more_clips(make_batch, make_embeddings):
    batch, embeddings = make_batch(1, DIMS), make_embeddings(1, 8)
    with pytest.raises(UserError, match="num_negatives=0"):
        TimeContrastive(TimeContrastiveConfig(), 8, DIMS)(embeddings, batch)
    TimeContrastive(TimeContrastiveConfig(num_negatives=0), 8, DIMS)(embeddings, batch)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"negatives": "permute"}, "did you mean 'permutation'"),
        ({"num_negatives": -1}, "num_negatives=-1 must be a whole number of at least 0"),
        ({"similarity": "l1"}, "did you mean 'l2'"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(UserError, match=message):
        TimeContrastiveConfig(**option)


def test_layer_norm_makes_the_length_of_embeddings_irrelevant(make_batch, make_embeddings):
    batch, embeddings = make_batch(6, DIMS), make_embeddings(6, 8)
    for layer_norm in (True, False):
        config = TimeContrastiveConfig(layer_norm=layer_norm, num_negatives=0)
        objective = TimeContrastive(config, 8, DIMS)
        losses = [objective(scale * embeddings, batch)[0].item() for scale in (1, 7)]
        assert (losses[1] == pytest.approx(losses[0], rel=1e-4)) == layer_norm
