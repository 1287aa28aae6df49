import math

import pytest
import torch

from mcr.errors import UserError
from mcr.objectives.contrast import (
    FORMS,
    SIMILARITIES,
    ContrastConfig,
    choose_other_clips,
    contrastive_loss,
    contrastive_metrics,
    gather_candidates,
    pairwise_similarity,
    positives_first,
    similarity,
)

CPU = torch.device("cpu")
LOG_SOFTMAX, EPSILON_FORM = ContrastConfig(form="log_softmax"), ContrastConfig(form="epsilon")


def loss_and_gradient(logits, config):
    logits = torch.tensor(logits, requires_grad=True)
    loss = contrastive_loss(logits, config)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.item(), gradient


# ---- similarity


def test_l2_is_the_negative_distance():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert similarity(a, b, ContrastConfig()).tolist() == [-5.0, 0.0]
    assert similarity(a, b, ContrastConfig(temperature=2.0)).tolist() == [-2.5, 0.0]


def test_cosine_is_the_cosine_over_the_temperature():
    a, b = torch.tensor([[2.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 5.0], [6.0, 8.0]])
    scores = similarity(a, b, ContrastConfig(similarity="cosine", temperature=0.1))
    torch.testing.assert_close(scores, torch.tensor([0.0, 10.0]))


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradient_is_finite_at_distance_zero(name, value):
    config = ContrastConfig(similarity=name)
    for score in (similarity, pairwise_similarity):
        a = torch.full((2, 4), value, requires_grad=True)
        score(a, torch.full((2, 4), value), config).sum().backward()
        assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("name", SIMILARITIES)
def test_pairwise_agrees_with_rowwise(name):
    config = ContrastConfig(similarity=name, temperature=0.5)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 8, generator=generator)
    b = torch.randn(40, 8, generator=generator)  # above 25 rows cdist may switch to matmul
    torch.testing.assert_close(
        pairwise_similarity(a, b, config), similarity(a[:, None], b[None], config)
    )


def test_pairwise_keeps_small_distances_between_large_vectors():
    a = torch.full((40, 8), 1000.0)
    b = a + torch.eye(8)[0] * 0.125
    torch.testing.assert_close(
        pairwise_similarity(a, b, ContrastConfig()), torch.full((40, 40), -0.125)
    )


# ---- loss


def test_log_softmax_closed_form():
    # Three equal candidates: log 3. A positive ahead by log 2 of one negative: log(3 / 2).
    loss, _ = loss_and_gradient([[5.0, 5.0, 5.0]], LOG_SOFTMAX)
    assert loss == pytest.approx(math.log(3))
    loss, gradient = loss_and_gradient([[math.log(2), 0.0]], LOG_SOFTMAX)
    assert loss == pytest.approx(math.log(1.5))
    assert gradient.tolist() == [pytest.approx([-1 / 3, 1 / 3])]


def test_epsilon_form_closed_form():
    loss, _ = loss_and_gradient([[0.0, 0.0]], EPSILON_FORM)
    assert loss == pytest.approx(-math.log(1e-8 + 1 / (1e-8 + 2)))
    # e^-d = eps: the fraction is eps / (eps + 2 eps) = 1/3 instead of 1/2.
    distance = -math.log(1e-8)
    loss, _ = loss_and_gradient([[-distance, -distance]], EPSILON_FORM)
    assert loss == pytest.approx(math.log(3), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_loss_agrees_with_a_float64_loop(form):
    logits = -10 * torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row in logits.double().tolist():
        positive, total = math.exp(row[0]), sum(math.exp(score) for score in row)
        epsilon = 1e-8 if form == "epsilon" else 0.0
        expected -= math.log(epsilon + positive / (epsilon + total)) / len(logits)
    loss = contrastive_loss(logits, ContrastConfig(form=form))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("distance", [0.1, 1.0, 10.0, 100.0, 1000.0])
def test_log_softmax_has_the_same_loss_and_gradient_at_any_distance(distance):
    # The positive is the farther one by 0.5: only differences may matter.
    loss, gradient = loss_and_gradient([[-distance - 0.5, -distance]], LOG_SOFTMAX)
    assert loss == pytest.approx(math.log(1 + math.exp(0.5)), rel=1e-4)
    assert gradient[0, 0].item() == pytest.approx(-1 / (1 + math.exp(-0.5)), rel=1e-4)


@pytest.mark.parametrize("distance", [42.4, 60.0, 100.0, 1000.0])
def test_epsilon_form_is_18_42_at_large_distances(distance):
    loss, gradient = loss_and_gradient([[-distance] * 5], EPSILON_FORM)
    assert loss == pytest.approx(18.42, abs=0.005)
    assert gradient.abs().max() < 0.004  # and finite: log_softmax has 0.8 here


def test_epsilon_form_has_a_200_times_weaker_gradient_at_a_distance_of_42_4():
    logits = [[-42.4] * 5]
    _, epsilon_gradient = loss_and_gradient(logits, EPSILON_FORM)
    _, gradient = loss_and_gradient(logits, LOG_SOFTMAX)
    assert gradient[0, 0].item() == pytest.approx(-0.8)
    assert gradient.norm() / epsilon_gradient.norm() == pytest.approx(200, rel=0.25)
    # The push away from negatives, already gone at 25, is what compares candidates.
    _, epsilon_gradient = loss_and_gradient([[-25.0] * 5], EPSILON_FORM)
    assert epsilon_gradient[0, 1:].abs().max() < 0.01


# ---- metrics


def test_accuracy_counts_strict_wins_and_chance_one_of_all():
    logits = torch.tensor([[1.0, 0.0, -1.0], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [3.0, 2.0, 2.0]])
    accuracy, chance = contrastive_metrics(logits.requires_grad_())
    assert accuracy.item() == 0.5  # the tie in the second row counts as wrong
    assert chance.item() == pytest.approx(1 / 3)
    assert not accuracy.requires_grad


# ---- candidates and other clips


def test_one_process_gathers_its_own_batch():
    embeddings = torch.randn(3, 4)
    candidates, first = gather_candidates(embeddings)
    assert torch.equal(candidates[first : first + 3], embeddings)


def test_positives_first_rotates_each_row():
    logits = torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13]])
    assert positives_first(logits, first=0).tolist() == [[0, 1, 2, 3], [11, 12, 13, 10]]
    assert positives_first(logits, first=2).tolist() == [[2, 3, 0, 1], [13, 10, 11, 12]]


@pytest.mark.parametrize("num_clips", [2, 3, 4, 32])
def test_others_are_distinct_and_never_the_clip_itself(num_clips):
    torch.manual_seed(0)
    for _ in range(100):
        others = choose_other_clips(num_clips, 3, "others", CPU)
        assert others.shape == (num_clips, min(3, num_clips - 1))
        for clip, row in enumerate(others.tolist()):
            assert len(set(row)) == len(row)
            assert set(row) <= set(range(num_clips)) - {clip}


def test_others_reach_every_other_clip():
    torch.manual_seed(0)
    seen = {int(clip) for _ in range(200) for clip in choose_other_clips(8, 3, "others", CPU)[5]}
    assert seen == {0, 1, 2, 3, 4, 6, 7}


def test_permutation_hits_the_clip_itself_in_9_percent_of_samples():
    torch.manual_seed(0)
    hits = torch.stack(
        [
            (choose_other_clips(32, 3, "permutation", CPU) == torch.arange(32)[:, None]).any(1)
            for _ in range(500)
        ]
    )
    assert hits.float().mean().item() == pytest.approx(1 - (31 / 32) ** 3, abs=0.01)


def test_permutation_uses_every_clip_once_per_negative():
    columns = choose_other_clips(8, 3, "permutation", CPU).T
    assert [sorted(column.tolist()) for column in columns] == [list(range(8))] * 3


@pytest.mark.parametrize("selection", ["others", "permutation"])
def test_choice_is_a_function_of_the_global_seed(selection):
    def draw(seed):
        torch.manual_seed(seed)
        return choose_other_clips(32, 3, selection, CPU)

    assert torch.equal(draw(7), draw(7))
    assert not torch.equal(draw(7), draw(8))


@pytest.mark.parametrize("selection", ["others", "permutation"])
def test_each_group_is_a_batch_of_its_own(selection):
    torch.manual_seed(0)
    chosen = choose_other_clips(12, 3, selection, CPU, group=4)
    assert torch.equal(chosen // 4, (torch.arange(12) // 4)[:, None].expand(12, 3))
    assert torch.equal(chosen[:4], chosen[4:8] - 4)
    torch.manual_seed(0)
    assert torch.equal(chosen[:4], choose_other_clips(4, 3, selection, CPU))


def test_groups_must_divide_the_clips():
    with pytest.raises(UserError, match="10 clips do not divide into groups of 4"):
        choose_other_clips(10, 3, "others", CPU, group=4)


def test_one_clip_has_no_others():
    with pytest.raises(UserError, match="at least 2 clips"):
        choose_other_clips(1, 3, "others", CPU)


# ---- configuration


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"similarity": "cosin"}, "did you mean 'cosine'"),
        ({"form": "logsoftmax"}, "did you mean 'log_softmax'"),
        ({"temperature": 0.0}, "temperature=0.0 must be a finite number above 0"),
        ({"temperature": math.nan}, "temperature=nan must be a finite number above 0"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(UserError, match=message):
        ContrastConfig(**option)
