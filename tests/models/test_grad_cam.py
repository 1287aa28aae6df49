"""Grad-CAM against closed forms, for pooled channels, a linear head and a ViT."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mcr.errors import UserError
from mcr.models.backbones import build_backbone
from mcr.models.grad_cam import feature_map, grad_cam
from mcr.models.loading import load_model
from mcr.release.export import export_encoder


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def resnet():
    torch.manual_seed(1)
    return build_backbone("resnet18").eval()


def last_map(network, pixels):
    """The output of layer4."""
    with torch.no_grad():
        for name, layer in network.named_children():
            if name == "avgpool":
                return pixels
            pixels = layer(pixels)


def scaled(maps, size):
    maps = F.interpolate(maps[:, None], size, mode="bilinear")[:, 0]
    low, high = maps.flatten(1).min(1)[0], maps.flatten(1).max(1)[0]
    return (maps - low[:, None, None]) / (high - low)[:, None, None]


def test_of_pooled_channels_it_is_the_largest_ones_map(resnet, pixels):
    features = last_map(resnet, pixels)  # d mean(channel) / d pixel of that channel = 1 / (h w)
    largest = features.mean((2, 3)).argmax(1)
    expected = scaled(features[torch.arange(3), largest], (64, 96))
    torch.testing.assert_close(grad_cam(resnet, pixels), expected)
    torch.testing.assert_close(grad_cam(resnet, pixels, unit=7), scaled(features[:, 7], (64, 96)))


def test_of_a_linear_head_it_is_the_weighted_sum(resnet, pixels):
    resnet.fc = nn.Linear(512, 4)  # then Grad-CAM is CAM (Zhou et al. 2016): sum_c W[k, c] A_c
    weights = resnet.fc.weight.detach()
    cam = torch.einsum("kc,nchw->nkhw", weights, last_map(resnet, pixels)).relu()
    torch.testing.assert_close(grad_cam(resnet, pixels, unit=2), scaled(cam[:, 2], (64, 96)))


def test_where_nothing_raises_the_output_the_map_is_black(resnet, pixels):
    resnet.fc = nn.Linear(512, 1)
    nn.init.constant_(
        resnet.fc.weight, -1.0
    )  # after the ReLU of layer4 all contributions are negative
    assert (grad_cam(resnet, pixels) == 0).all()


def test_of_a_vit_the_weights_are_numerical_derivatives():
    torch.manual_seed(2)
    vit = build_backbone("vit_ti_16", image_size=48).double().eval()
    pixels = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    features, _ = feature_map(vit, pixels)
    assert features.shape == (1, 192, 3, 3)

    block = vit.encoder.layers[-1]
    entering = {}
    with block.register_forward_pre_hook(lambda _, inputs: entering.update(x=inputs[0])):
        unit = vit(pixels)[0].argmax()

    @torch.no_grad()
    def output(normalised):  # torchvision's EncoderBlock after its first LayerNorm
        x = entering["x"] + block.self_attention(normalised, normalised, normalised)[0]
        return vit.encoder.ln(x + block.mlp(block.ln_2(x)))[:, 0, unit]

    # one channel of all nine patches raised and lowered a little, for each of the 192 channels
    normalised = block.ln_1(entering["x"]).detach()
    nudge = torch.zeros(192, 10, 192, dtype=torch.float64)
    nudge[torch.arange(192), 1:, torch.arange(192)] = 1e-6
    weights = (output(normalised + nudge) - output(normalised - nudge)) / 2e-6 / 9
    patches = rearrange(normalised[0, 1:], "(h w) c -> c h w", h=3)
    torch.testing.assert_close(patches, features[0].detach())
    expected = scaled(torch.einsum("c,chw->hw", weights, patches).relu()[None].float(), (48, 48))
    torch.testing.assert_close(grad_cam(vit, pixels), expected, atol=1e-5, rtol=1e-5)


def test_of_a_frozen_encoder_it_is_the_same_and_nothing_changes(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    export_encoder(tmp_path / "resnet18.pth", tmp_path / "encoder")
    encoder = load_model(tmp_path / "encoder")
    pixels = encoder.preprocess(torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8))
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    with torch.no_grad():  # the caller may have disabled gradients
        torch.testing.assert_close(grad_cam(encoder, pixels), grad_cam(resnet, pixels))
    assert all(torch.equal(before[name], t) for name, t in resnet.state_dict().items())
    assert all(p.grad is None for p in [*resnet.parameters(), *encoder.parameters()])
    assert not resnet.layer4._forward_hooks and not encoder.layer4._forward_hooks


def test_unknown_network():
    with pytest.raises(UserError, match="no feature map of a Linear"):
        grad_cam(nn.Linear(3, 3), torch.zeros(1, 3))
