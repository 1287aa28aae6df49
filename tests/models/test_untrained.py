"""Untrained encoders: random as the seed says, and in the form that `load_model` reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mcr.errors import UserError
from mcr.models.backbones import build_backbone
from mcr.models.fine_tuning import param_groups
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


def statistics_moved_by(encoder, images) -> set[str]:
    """The layers whose running statistics a pass in training mode changes."""
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    policy = nn.Sequential(encoder, nn.Linear(encoder.embed_dim, 2)).train()
    policy(images).sum().backward()
    moved = [n for n, b in encoder.named_buffers() if not torch.equal(b, before[n])]
    return {name.split(".")[0] for name in moved}


def test_layers_that_learn_have_live_statistics(tmp_path: Path):
    images = torch.rand(3, 3, 40, 40)
    encoder = load_model(write_untrained(tmp_path / "w.pt", image_size=32))
    assert statistics_moved_by(encoder, images) == set()
    encoder.unfreeze(["layer4", "layer3"])
    assert statistics_moved_by(encoder, images) == {"layer3", "layer4"}
    normalised = []
    encoder.layer4[1].bn2.register_forward_hook(lambda *call: normalised.append(call[2].clone()))
    encoder(images)
    means = normalised[0].mean(dim=(0, 2, 3))  # of this batch: so its statistics were used
    torch.testing.assert_close(means, torch.zeros(512), atol=1e-5, rtol=0)
    encoder.freeze()
    assert statistics_moved_by(encoder, images) == set()
    encoder.requires_grad_().eval()(images)
    assert not any(module.training for module in encoder.modules())


def test_checkpointing_counts_statistics_once(tmp_path: Path):
    images, states = torch.rand(3, 3, 40, 40), []
    for enable in (False, True):
        encoder = load_model(write_untrained(tmp_path / "w.pt", image_size=32)).requires_grad_()
        encoder.set_grad_checkpointing(enable)
        encoder.train()(images).sum().backward()
        states.append(encoder.state_dict())
    assert states[0]["layer1.0.bn1.num_batches_tracked"] == 1
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor)


def test_an_untrained_network_of_timm_has_live_statistics(tmp_path: Path):
    pytest.importorskip("timm")
    path = write_untrained(tmp_path / "w.pt", "timm:test_resnet", image_size=160)
    encoder = load_model(path)
    assert statistics_moved_by(encoder, torch.rand(2, 3, 160, 160)) == set()
    assert statistics_moved_by(encoder.requires_grad_(), torch.rand(2, 3, 160, 160)) == {"network"}
    with pytest.raises(UserError, match="count its batch statistics twice"):
        encoder.set_grad_checkpointing()


def test_an_untrained_encoder_learns_at_the_full_rate(tmp_path: Path):
    path = write_untrained(tmp_path / "w.pt", image_size=32)
    trained = {k: v for k, v in torch.load(path).items() if k != "untrained"}
    torch.save(trained, tmp_path / "trained.pt")
    for source, rate in ((path, 0.5), (tmp_path / "trained.pt", 0.05)):
        policy = nn.Sequential(load_model(source), nn.Linear(512, 2))
        groups = param_groups(policy, lr=0.5)
        assert [(g["name"], g["lr"]) for g in groups] == [("policy", 0.5), ("encoder", rate)]
        assert sum(len(g["params"]) for g in groups) == len(list(policy.parameters()))


def test_an_unknown_backbone_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"'resnet19' is unknown; did you mean 'resnet18'\?"):
        write_untrained(tmp_path / "encoder.pt", "resnet19")
    assert not (tmp_path / "encoder.pt").exists()
