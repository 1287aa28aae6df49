import math

import pytest
import torch
from torch import nn

from mcr.data.batch import Dimensions
from mcr.errors import UserError
from mcr.objectives.distillation import Distillation, DistillationConfig

DIMS = Dimensions(state=14, action=7, window=3, teacher=2)


def build(distance):
    objective = Distillation(DistillationConfig(distance=distance), 2, DIMS)
    nn.init.eye_(objective.head.weight)
    nn.init.zeros_(objective.head.bias)
    return objective


def test_closed_form(make_batch):
    """The student says (3, 0) everywhere; the teacher (1, 1) for one clip, (0, 1) for the other."""
    batch = make_batch(2, DIMS)
    batch.teacher_features = torch.tensor([[1.0, 1.0], [0.0, 1.0]])[:, None].expand(2, 5, 2)
    embeddings = torch.tensor([3.0, 0.0]).expand(2, 5, 2)
    half = math.sqrt(0.5)
    loss, metrics = build("cosine")(embeddings, batch)
    assert loss.item() == pytest.approx(1 - half / 2)  # the cosines are sqrt(1/2) and 0
    assert metrics["similarity"].item() == pytest.approx(half / 2)
    mean = (1.5 / math.sqrt(2) + 1) / math.sqrt(1.25)  # (0.5, 1) against (1, 1) and (0, 1)
    assert metrics["blind_similarity"].item() == pytest.approx(mean / 2)
    loss, _ = build("mse")(embeddings, batch)
    assert loss.item() == pytest.approx((4 + 1 + 9 + 1) / 4)


def test_a_student_that_is_the_teacher_loses_nothing(make_batch, make_embeddings):
    batch, embeddings = make_batch(3, DIMS), make_embeddings(3, 2)
    batch.teacher_features = 2 * embeddings.detach()  # the cosine does not see length
    assert build("cosine")(embeddings, batch)[0].item() == pytest.approx(0, abs=1e-6)
    batch.teacher_features = embeddings.detach()
    assert build("mse")(embeddings, batch)[0].item() == 0


def test_no_teacher_and_no_such_distance_are_refused():
    with pytest.raises(UserError, match=r"objectives.distillation.teacher is not set"):
        Distillation(DistillationConfig(), 2, Dimensions(14, 7, 3))
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        DistillationConfig(distance="cosin")
