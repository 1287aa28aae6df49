"""Runs that start from weights that exist, and runs with all options of the optimiser."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import mcr
from mcr.errors import UserError
from mcr.release.export import export_encoder
from mcr.training.checkpoint import list_checkpoints, load_checkpoint
from mcr.training.distributed import World
from mcr.training.train import Run, make_deterministic, train
from tests.training.test_train import assert_a_kill_changes_nothing, assert_same_checkpoint

CPU = torch.device("cpu")
EVERYTHING = {
    "optimizer.kind": "adamw",
    "optimizer.weight_decay": 0.05,
    "optimizer.warmup_steps": 3,
    "optimizer.decay_steps": 8,
    "optimizer.decay": "cosine",
    "optimizer.backbone_lr_scale": 0.5,
    "optimizer.layer_decay": 0.8,
    "optimizer.clip_norm": 0.5,
    "model.ema": 0.9,
    "model.frozen_bn": True,
}


@pytest.fixture
def other_colours(small_checkpoint, tmp_path):
    """A checkpoint whose preprocessing is nobody's default."""
    content = torch.load(small_checkpoint, weights_only=True)
    content["encoder_config"] |= {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    path = tmp_path / "other.pt"
    torch.save(content, path)
    return path


def test_training_begins_at_the_weights_and_exports_their_preprocessing(
    tiny, other_colours, tmp_path
):
    config = tiny(steps=1, **{"model.init": str(other_colours), "model.backbone": "resnet50",
                              "model.frozen_bn": True, "optimizer.lr": 1e-12})  # fmt: skip
    checkpoint = load_checkpoint(train(config))
    expected = torch.load(other_colours, weights_only=True)
    for name, tensor in checkpoint["encoder"].items():
        torch.testing.assert_close(tensor, expected["encoder"][name], msg=name)
    assert checkpoint["config"]["model"]["backbone"] == "resnet18"  # that of the weights
    wanted = expected["encoder_config"] | {"image_size": 32, "resize": round(73 / 2)}
    assert checkpoint["encoder_config"] == wanted
    path = list_checkpoints(Path(config.run_dir) / "checkpoints")[-1]
    exported = export_encoder(path, tmp_path / "export").path
    preprocessing = mcr.load_model(exported).preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)
    assert preprocessing.interpolation == "bicubic"


def test_a_resumed_run_does_not_read_the_weights_again(tiny, other_colours):
    config = tiny(steps=2, **{"model.init": str(other_colours), "model.backbone": "resnet50"})
    train(config)
    other_colours.unlink()
    config.steps = 3
    checkpoint = load_checkpoint(train(config))
    assert checkpoint["step"] == 3 and checkpoint["encoder_config"]["mean"] == [0.5] * 3


def test_another_network_than_that_of_the_weights_is_refused(tiny, small_checkpoint):
    config = tiny(**{"model.init": str(small_checkpoint), "model.backbone": "resnet34"})
    with pytest.raises(UserError, match="it is a resnet18, not the resnet34 that was asked for"):
        train(config)
    assert not Path(config.run_dir).exists()


def test_killed_and_resumed_with_every_option_equals_uninterrupted_bitwise(
    tiny, tmp_path, small_checkpoint
):
    options = EVERYTHING | {"model.init": str(small_checkpoint), "steps": 10, "save_every": 4}
    whole, killed = (tiny(run_dir=str(tmp_path / n), **options) for n in ("whole", "killed"))
    path = assert_a_kill_changes_nothing(whole, killed, kill_at=6)
    checkpoint = load_checkpoint(path)
    difference = checkpoint["encoder_ema"]["conv1.weight"] - checkpoint["encoder"]["conv1.weight"]
    assert difference.abs().max() > 0


def test_the_average_is_exported_on_request(tiny, tmp_path):
    path = train(tiny(steps=3, **{"model.ema": 0.5}))
    checkpoint = load_checkpoint(path)
    last = mcr.load_model(export_encoder(path, tmp_path / "last").path)
    average = mcr.load_model(export_encoder(path, tmp_path / "average", ema=True).path)
    for encoder, key in ((last, "encoder"), (average, "encoder_ema")):
        assert torch.equal(encoder.conv1.weight, checkpoint[key]["conv1.weight"]), key
    assert not torch.equal(last.conv1.weight, average.conv1.weight)
    assert "average" in (tmp_path / "average" / "README.md").read_text()


def test_an_average_that_was_not_kept_is_not_exported(tiny, tmp_path):
    path = train(tiny(steps=1, val_clips=0))
    with pytest.raises(UserError, match=r"no average of the weights; train with model.ema=0.999"):
        export_encoder(path, tmp_path / "average", ema=True)


def test_an_average_that_begins_in_a_continued_run_begins_at_its_weights(tiny):
    config = tiny(steps=2, allow_config_change=True)
    before = load_checkpoint(train(config))["encoder"]["conv1.weight"]
    config.steps, config.model.ema = 3, 0.75
    after = load_checkpoint(train(config))
    expected = 0.75 * before + 0.25 * after["encoder"]["conv1.weight"]
    torch.testing.assert_close(after["encoder_ema"]["conv1.weight"], expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.ema": 1.0}, "model.ema=1.0 must be a finite number of at least 0 and below 1"),
        ({"optimizer.warmup_steps": 5}, "optimizer.warmup_steps=5 is more than the run's steps=4"),
        (
            {"optimizer.warmup_steps": -5},
            "warmup_steps=-5 must be a whole number of at least 0",
        ),
    ],
)
def test_bad_values_are_refused_in_a_sentence(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        train(tiny(**overrides))


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("model.init", {}),
        ("objectives.distillation.teacher", {"loss_weights": {"distillation": 1.0}}),
    ],
)
def test_weights_are_read_before_the_data(tiny, key, more, tmp_path):
    """The data are no data set: their error would come first if they were opened first."""
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"PK\x03\x04 and nothing else")
    root = tmp_path / "empty"
    root.mkdir()
    with pytest.raises(UserError, match=f"{key}={broken}"):
        train(tiny(**{key: str(broken), "data.root": str(root)}, **more))
    with pytest.raises(UserError, match="empty: holds no data set"):
        train(tiny(**{"data.root": str(root)}))


# ---- timm's networks


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_dinov3_qkvb", {"engine.recompute": True}),
        ("tf_efficientnet_lite0", {"engine.recompute": True, "pictures_every": 1}),
    ],
)
def test_networks_of_timm_train(tiny, tmp_path, name, options):
    pytest.importorskip("timm")
    backbone = f"timm:{name}"
    path = train(tiny(steps=1, **{"model.backbone": backbone}, **options))
    encoder = mcr.load_model(export_encoder(path, tmp_path / "export").path)
    assert encoder.backbone == backbone and encoder.preprocessing.image_size == 32


def first_step(config) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step of a run."""
    make_deterministic(False)
    run = Run(config, World(), CPU)
    batch = next(iter(run.data.loader(first_sample=0, pin_memory=False)))
    torch.manual_seed(0)
    run.engine.step([batch])
    return {name: p.grad.clone() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_dinov3_qkvb", "tf_efficientnet_lite0"])
def test_recomputing_a_network_of_timm_changes_no_gradient(tiny, tmp_path, name):
    pytest.importorskip("timm")
    config = tiny(val_clips=0, **{"model.backbone": f"timm:{name}"})
    plain = first_step(config)
    engine = dataclasses.replace(config.engine, recompute=True)
    again = first_step(
        dataclasses.replace(config, engine=engine, run_dir=str(tmp_path / "recomputed"))
    )
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, msg=key)


@pytest.mark.slow
def test_compiling_a_vit_of_timm_changes_gradients_by_rounding_only(tiny, tmp_path):
    pytest.importorskip("timm")
    config = tiny(val_clips=0, **{"model.backbone": "timm:vit_tiny_patch16_dinov3_qkvb"})
    plain = first_step(config)
    engine = dataclasses.replace(config.engine, compile="default")
    compiled = first_step(
        dataclasses.replace(config, engine=engine, run_dir=str(tmp_path / "compiled"))
    )
    for key, gradient in plain.items():
        torch.testing.assert_close(compiled[key], gradient, rtol=1e-3, atol=1e-5, msg=key)


# ---- runs of the previous release

# Options that version 0.2 did not have.
NEW_OPTIONS = {
    "model": {"ema", "init"},
    "optimizer": {
        "kind",
        "warmup_steps",
        "decay",
        "backbone_lr_scale",
        "layer_decay",
        "clip_norm",
    },
    "objectives": {"distillation"},
    "loss_weights": {"distillation"},
}


def as_of_the_previous_release(path: Path) -> None:
    """Rewrite a checkpoint as version 0.2 would have written it: without what is new."""
    content = torch.load(path, weights_only=True)
    for part, names in NEW_OPTIONS.items():
        for name in names:
            del content["config"][part][name]
    content["config"]["data"]["sampling"].pop("late_after_middle")
    torch.save(content, path)


def test_a_run_of_the_previous_release_goes_on_to_the_same_bits(tiny, tmp_path):
    whole = train(tiny(steps=6, run_dir=str(tmp_path / "whole")))
    parts = tiny(steps=3, run_dir=str(tmp_path / "parts"))
    as_of_the_previous_release(train(parts))
    parts.steps = 6
    assert_same_checkpoint(whole, train(parts))


def test_a_run_of_the_previous_release_may_not_change_what_is_new(tiny):
    config = tiny(steps=2)
    as_of_the_previous_release(train(config))
    config.steps, config.optimizer.clip_norm = 3, 1.0
    with pytest.raises(UserError, match=r"begun with another config:\n  optimizer.clip_norm: 0.0"):
        train(config)
