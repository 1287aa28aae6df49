"""Untrained encoders: random as the seed says, and in the form that `load_model` reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mcr.errors import UserError
from mcr.models.backbones import build_backbone
from mcr.models.loading import load_model
from mcr.models.preprocessing import Preprocessing
from mcr.models.untrained import build_untrained, write_untrained, write_untrained_like

SMALL = Preprocessing.for_size(32)


def tensors_equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_the_weights_are_those_that_the_backbone_begins_with():
    torch.manual_seed(3)
    expected = build_backbone("resnet18").state_dict()
    torch.manual_seed(3)
    encoder = build_untrained("resnet18", SMALL)
    assert tensors_equal(encoder.state_dict(), expected)
    assert encoder.preprocessing == SMALL and encoder.backbone == "resnet18"
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("backbone", ["resnet18", "vit_ti_16"])
def test_a_file_depends_on_its_seed_and_leaves_torchs_random_state(backbone, tmp_path: Path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (
        load_model(write_untrained(tmp_path / f"{number}.pt", backbone, 32, seed)).state_dict()
        for number, seed in enumerate([0, 0, 1])
    )
    assert torch.equal(torch.rand(3), expected)
    assert tensors_equal(first, again) and not tensors_equal(first, other)


def test_one_like_another_has_its_network_and_its_preprocessing(tmp_path: Path):
    source = write_untrained(tmp_path / "source.pt", "resnet18", 48, seed=0)
    like = load_model(write_untrained_like(tmp_path / "like.pt", source, seed=1))
    assert like.preprocessing == Preprocessing.for_size(48) and like.backbone == "resnet18"
    assert not tensors_equal(like.state_dict(), load_model(source).state_dict())


def test_one_like_a_network_of_timm(tmp_path: Path):
    timm = pytest.importorskip("timm")
    name = "test_resnet.r160_in1k"
    torch.save(timm.create_model(name.partition(".")[0]).state_dict(), tmp_path / "source.pth")
    encoder = load_model(tmp_path / "source.pth", backbone=f"timm:{name}")
    torch.manual_seed(0)
    made = build_untrained(encoder.backbone, encoder.preprocessing)
    assert made.state_dict().keys() == encoder.state_dict().keys()
    assert made(torch.rand(1, 3, 160, 160)).shape == (1, encoder.embed_dim)


def test_an_unknown_backbone_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"'resnet19' is unknown; did you mean 'resnet18'\?"):
        write_untrained(tmp_path / "encoder.pt", "resnet19")
    assert not (tmp_path / "encoder.pt").exists()
