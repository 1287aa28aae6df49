"""Networks of timm to train, against timm's own, and the weights that training starts from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mcr
from mcr.errors import UserError
from mcr.models.backbones import freeze_batch_norm
from mcr.models.blocks import blocks_of, layers_of
from mcr.models.grad_cam import grad_cam
from mcr.models.trainable import build_network, read_start, usual_preprocessing

timm = pytest.importorskip("timm")

# Activations inside batch norm, registers and rotary positions, plain blocks, stages of its own.
NETWORKS = {
    "tf_efficientnet_lite0": 16,
    "vit_tiny_patch16_dinov3_qkvb": 12,
    "resnet10t": 4,
    "convnext_atto": 4,
}
PIXELS = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(name):
    torch.manual_seed(0)
    return build_network(f"timm:{name}", 64)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_timm_computes_what_timm_computes(name, training):
    ours = build(name).train(training)
    theirs = timm.create_model(name, num_classes=0).train(training)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    expected = theirs(PIXELS)
    torch.testing.assert_close(ours(PIXELS), expected)
    assert expected.shape == (3, ours.embed_dim)
    for (name, own), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own, other, msg=name)  # running statistics


def test_all_its_batch_norm_is_of_the_class_that_training_knows():
    network = build("tf_efficientnet_lite0")
    kinds = {type(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {nn.BatchNorm2d}
    freeze_batch_norm(network)
    before = copy.deepcopy(dict(network.named_buffers()))
    network.train()(PIXELS)
    assert all(torch.equal(before[name], b) for name, b in network.named_buffers())


@pytest.mark.parametrize(("name", "count"), NETWORKS.items())
def test_its_blocks_and_layers(name, count):
    network = build(name)
    assert len(blocks_of(network)) == count
    layers = layers_of(network)
    assert sum(layers, []) == [name for name, _ in network.named_parameters()]
    assert len(layers) >= count + 1


@pytest.mark.parametrize("name", NETWORKS)
def test_it_can_be_looked_at(name):
    maps = grad_cam(build(name).eval(), PIXELS)
    assert maps.shape == (3, 64, 64) and maps.min() >= 0 and maps.max() <= 1


def test_a_size_that_it_does_not_take_is_refused():
    with pytest.raises(UserError, match=r"image_size=64 does not fit timm:vit_tiny_patch16_224, .*"
                       r"set model.image_size=224"):  # fmt: skip
        build("vit_tiny_patch16_224")
    with pytest.raises(UserError, match="timm has no such network; did you mean"):
        build("resnet10tt")


def test_its_usual_preprocessing_is_timms():
    recorded = usual_preprocessing("timm:tf_efficientnet_lite0", 112)
    assert (recorded.mean, recorded.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (recorded.image_size, recorded.resize, recorded.interpolation) == (112, 128, "bicubic")


# ---- weights to start from


def test_the_start_keeps_its_preprocessing_and_takes_the_size(small_checkpoint):
    start = read_start(str(small_checkpoint), None, 128)
    own = mcr.load_model(small_checkpoint).preprocessing
    assert start.backbone == "resnet18"
    assert (start.preprocessing.image_size, start.preprocessing.resize) == (128, 146)  # 2 * 73
    assert start.preprocessing.resized(64) == own


def test_a_start_of_another_network_is_refused(small_checkpoint, released):
    with pytest.raises(UserError, match=r"\(model.backbone=resnet50\): .* it is a resnet18, not"):
        read_start(str(small_checkpoint), "resnet50", 64)
    with pytest.raises(UserError, match=r"model.init=no_such_model: .*no such file"):
        read_start("no_such_model", None, 64)


def test_the_positions_of_a_vit_are_for_one_size(save, make_network):
    path = str(save(make_network("vit_ti_16").state_dict()))
    assert read_start(path, None, 224).preprocessing.image_size == 224
    with pytest.raises(UserError, match=r"a vit_ti_16 for pictures of 224 pixels cannot start with"
                       r" model.image_size=64: set model.image_size=224"):  # fmt: skip
        read_start(path, None, 64)


def test_a_file_of_timm_is_read_as_the_network_that_is_asked_for(save):
    network = build("resnet10t")
    start = read_start(str(save(network.state_dict())), "timm:resnet10t", 64)
    assert start.backbone == "timm:resnet10t" and start.preprocessing.image_size == 64
    assert all(torch.equal(start.tensors[name], t) for name, t in network.state_dict().items())
