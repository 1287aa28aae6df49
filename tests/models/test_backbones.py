"""Every entry of `BACKBONES` is torchvision's network."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from mcr.errors import UserError
from mcr.models.backbones import BACKBONES, build_backbone, freeze_batch_norm, identify_backbone


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "vit_b_16"])
def test_equals_torchvisions_architecture(name):
    with torch.device("meta"):
        ours, theirs = build_backbone(name), getattr(torchvision.models, name)()
    heads = ("fc.", "heads.")
    expected = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith(heads)}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_identified_by_its_tensors_even_if_some_are_missing(name):
    with torch.device("meta"):
        tensors = build_backbone(name, 16 * 14).state_dict()
    for gone in list(tensors)[1::5]:
        del tensors[gone]
    if name.startswith("vit_s_16"):  # tensors do not show the number of heads
        with pytest.raises(UserError, match="a vit_s_16 or a vit_s_16_h12, .*backbone='vit_s_16'"):
            identify_backbone(tensors)
    else:
        assert identify_backbone(tensors) == name


def test_registers_are_tokens_without_a_position():
    network = build_backbone("vit_s_14_reg4", 28).eval()
    assert network.class_token.shape == (1, 5, 384)
    assert network.encoder.pos_embedding.shape == (1, 1 + 4 + 4, 384)
    assert not network.encoder.pos_embedding[:, 1:5].any()
    pixels = torch.randn(2, 3, 28, 28)
    before = network(pixels)
    with torch.no_grad():
        network.class_token[:, 3] += 1  # the patches and the class token attend to it
    assert before.shape == (2, 384) and not torch.allclose(network(pixels), before)


def test_unknown_tensors_are_not_identified():
    with pytest.raises(UserError, match="no encoder known here"):
        identify_backbone({"layers.0.weight": torch.zeros(3)})


def test_wrong_names_and_sizes():
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        build_backbone("resnet-50")
    with pytest.raises(UserError, match="image_size=100 does not fit vit_s_16: choose a multiple"):
        build_backbone("vit_s_16", image_size=100)


def test_frozen_batch_norm_keeps_statistics_but_learns():
    network = build_backbone("resnet18")
    names = list(network.state_dict())
    freeze_batch_norm(network)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    # its layers in another module, as policies use them
    nn.Sequential(network.conv1, network.bn1).train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert network.bn1.weight.grad is not None and network.layer1.training
    assert list(network.state_dict()) == names
