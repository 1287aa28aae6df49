"""`timm:` networks against timm's own forward, and files that do not fill them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mcr
from mcr.errors import UserError
from mcr.models.sources import read_source

timm = pytest.importorskip("timm")
IMAGES = torch.rand(1, 3, 180, 320, generator=torch.Generator().manual_seed(0))

# A ViT with classifier, a ResNet of timm's own kind (norms with activations), DINOv3's: rotary
# positions, registers, LayerScale.
NETWORKS = ("vit_tiny_patch16_224", "resnet10t", "vit_tiny_patch16_dinov3_qkvb")


def build(name, **arguments):
    torch.manual_seed(0)
    network = timm.create_model(name, **arguments).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


@pytest.fixture
def resnet(save):
    return mcr.load_model(save(build("resnet10t").state_dict()), backbone="timm:resnet10t")


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_timm(name, save, tmp_path):
    network = build(name)
    encoder = mcr.load_model(save(network.state_dict()), backbone=f"timm:{name}")
    network.reset_classifier(0)
    with torch.no_grad():
        pooled, spatial = encoder(IMAGES), encoder.features(IMAGES, "spatial")
        torch.testing.assert_close(pooled, network(encoder.preprocess(IMAGES)))
    assert pooled.shape == (1, encoder.embed_dim) and spatial.ndim == 4
    config = timm.data.resolve_model_data_config(network)
    known = ("input_size", "interpolation", "mean", "std", "crop_mode")
    assert {key: encoder.pretrained_cfg[key] for key in known} == {k: config[k] for k in known}
    assert encoder.preprocessing.resize == int(config["input_size"][1] / config["crop_pct"])
    assert {name.split(".")[0] for name in encoder.stages} == {"network"}


def test_a_file_without_classifier_and_in_safetensors(tmp_path):
    network = build("resnet10t", num_classes=0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"no config\.json beside it .* or pass backbone="):
        mcr.load_model(tmp_path / "weights.safetensors")
    encoder = mcr.load_model(tmp_path / "weights.safetensors", backbone="timm:resnet10t")
    with torch.no_grad():
        torch.testing.assert_close(encoder(IMAGES), network(encoder.preprocess(IMAGES)))


def test_dinov3_as_its_authors_publish_it(save):
    network = build("vit_tiny_patch16_dinov3_qkvb", num_classes=0)
    tensors = dict(network.state_dict())
    tensors["storage_tokens"] = tensors.pop("reg_token")
    for name in list(tensors):
        if "gamma_" in name:
            tensors[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = (
                tensors.pop(name)
            )
    tensors |= {"mask_token": torch.zeros(1, 192), "rope_embed.periods": torch.ones(16)}
    path = save(tensors)
    with pytest.raises(UserError, match=r"looks like DINOv3 .*backbone='timm:NAME'"):
        mcr.load_model(path)
    encoder = mcr.load_model(path, backbone="timm:vit_tiny_patch16_dinov3_qkvb")
    with torch.no_grad():
        torch.testing.assert_close(encoder(IMAGES), network(encoder.preprocess(IMAGES)))


def test_frozen_means_frozen(resnet):
    before = copy.deepcopy(resnet.state_dict())
    for encoder in (resnet, copy.deepcopy(resnet), pickle.loads(pickle.dumps(resnet))):
        policy = nn.Sequential(encoder, nn.Linear(encoder.embed_dim, 7)).train()
        policy(IMAGES).sum().backward()
        nn.Sequential(*encoder.network.children())[:2].train()(torch.rand(2, 3, 32, 32))
        after = encoder.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert all(parameter.grad is None for parameter in encoder.parameters())


def test_stages_and_checkpointing(resnet):
    assert resnet.stages[0] == "network.layer4.0"
    resnet.unfreeze(resnet.stages[:2])
    learning = {name.split(".")[1] for name, p in resnet.named_parameters() if p.requires_grad}
    assert learning == {"layer4", "layer3"}
    resnet(IMAGES).sum().backward()
    expected = resnet.network.layer3[0].conv1.weight.grad.clone()
    resnet.zero_grad()
    resnet.set_grad_checkpointing()
    resnet(IMAGES).sum().backward()
    torch.testing.assert_close(resnet.network.layer3[0].conv1.weight.grad, expected)


def test_an_export_is_loaded_again(resnet, save, tmp_path):
    path = save(build("resnet10t").state_dict())
    weights = read_source(path, "timm:resnet10t")
    assert weights.backbone == "timm:resnet10t" and not any(
        "fc." in name for name in weights.tensors
    )


def test_wrong_names_and_files(network, save):
    with pytest.raises(UserError, match="timm has no such network; did you mean 'resnet50'"):
        mcr.load_model("timm:resnet_50")
    with pytest.raises(UserError, match=r"timm:resnet18\.a9_in1k: .*a9_in1k"):
        mcr.load_model("timm:resnet18.a9_in1k")
    with pytest.raises(UserError, match="timm has no weights for it; give a file"):
        mcr.load_model("timm:coatnet_0_224")
    message = "takes 3 x 192 x 192 pixels, cropped by 'squash': only square RGB"
    with pytest.raises(UserError, match=message):
        mcr.load_model("timm:dm_nfnet_f0")
    tensors = build("resnet10t").state_dict()
    missing = tensors.pop("layer1.0.conv1.weight")
    with pytest.raises(
        UserError, match="do not fill a timm:resnet10t: .*layer1.0.conv1.weight"
    ) as e:
        mcr.load_model(save(tensors), backbone="timm:resnet10t")
    assert "\n" not in str(e.value)
    tensors["layer1.0.conv1.weight"] = missing[:1]
    with pytest.raises(UserError, match="do not fill a timm:resnet10t: .*size mismatch"):
        mcr.load_model(save(tensors), backbone="timm:resnet10t")
