"""ViTs under timm's names against timm's own networks: the same tokens, or an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mcr.errors import UserError
from mcr.models.backbones import build_backbone
from mcr.models.loading import load_model
from mcr.models.vision_transformer import resize_positions, to_torchvision

timm = pytest.importorskip("timm")
IMAGES = torch.rand(1, 3, 180, 320, generator=torch.Generator().manual_seed(0))


def network_of_timm(name="vit_tiny_patch16_224", **arguments):
    """timm's network with LayerScale, norms, positions and tokens far from initial values."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, **arguments).eval()
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 or name.endswith(("pos_embed", "_token")):
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.5)
    return network


def mae_file(network):
    """MAE's whole training checkpoint: the encoder's names are timm's, the decoder's its own."""
    decoder = {
        "decoder_embed.weight": torch.zeros(2),
        "decoder_blocks.0.norm1.bias": torch.zeros(2),
    }
    return {"model": {**network.state_dict(), **decoder, "mask_token": torch.zeros(1, 1, 192)}}


def dinov2_file(network):
    """DINOv2's published layout: timm moved the class token's position into the token."""
    tensors = dict(network.state_dict())
    if "reg_token" in tensors:
        tensors["register_tokens"] = tensors.pop("reg_token")
        position = torch.randn(1, 1, tensors["cls_token"].shape[-1])
        tensors["cls_token"] = tensors["cls_token"] - position
        tensors["pos_embed"] = torch.cat([position, tensors["pos_embed"]], dim=1)
    return {**tensors, "mask_token": torch.zeros(1, 384)}


def assert_same_tokens(encoder, network):
    pixels = encoder.preprocess(IMAGES)
    with torch.no_grad():
        tokens = network.forward_features(pixels)
        assert_close = torch.testing.assert_close
        assert_close(encoder(IMAGES), tokens[:, 0], rtol=1e-4, atol=1e-4)
        patches = tokens[:, network.num_prefix_tokens :]
        assert_close(encoder.features(IMAGES, "tokens"), patches, rtol=1e-4, atol=1e-4)
        spatial = encoder.features(IMAGES, "spatial")
    assert torch.equal(spatial.flatten(-2).mT, encoder.features(IMAGES, "tokens"))


@pytest.mark.parametrize("size", [224, 256])
def test_masked_autoencoders(size, save):
    network = network_of_timm(img_size=size)
    encoder = load_model(save(mae_file(network)))
    assert encoder.backbone == "vit_ti_16"
    assert encoder.pretrained_cfg["input_size"] == (3, size, size)
    assert encoder.pretrained_cfg["interpolation"] == "bicubic"
    assert_same_tokens(encoder, network)


def test_the_number_of_heads_is_asked_for_where_tensors_cannot_tell(save):
    network = network_of_timm("vit_small_patch16_224", num_heads=12)  # MVP's ViT-S
    path = save(mae_file(network))
    with pytest.raises(UserError, match=r"vit_s_16 or a vit_s_16_h12.*attention heads.*backbone="):
        load_model(path)
    assert_same_tokens(load_model(path, backbone="vit_s_16_h12"), network)
    with pytest.raises(UserError, match="'vit_s_16_12' is unknown; did you mean 'vit_s_16_h12'"):
        load_model(path, backbone="vit_s_16_12")


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_dinov2(name, save):
    network = network_of_timm(name, img_size=224)
    content = dinov2_file(network)
    encoder = load_model(save(content))
    assert encoder.backbone == ("vit_s_14_reg4" if "reg4" in name else "vit_s_14")
    assert_same_tokens(encoder, network)
    del content["blocks.3.ls2.gamma"]
    with pytest.raises(UserError, match=r"1 of its LayerScale.* missing \(blocks.3.ls2.gamma"):
        load_model(save(content))


def test_dinov2_names_as_timm_writes_them(save):
    network = network_of_timm("vit_small_patch14_reg4_dinov2", img_size=224)
    assert_same_tokens(load_model(save(network.state_dict())), network)


@pytest.mark.parametrize("name, ours", [("base", "vit_b_16"), ("large", "vit_l_16")])
def test_the_published_sizes_have_our_names_and_shapes(name, ours):
    with torch.device("meta"):
        theirs = timm.create_model(f"vit_{name}_patch16_224", num_classes=0).state_dict()
        expected = build_backbone(ours).state_dict()
    converted = to_torchvision(theirs, None)
    shapes = {name: tensor.shape for name, tensor in converted.items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.items()}


WRONG = {
    "no positions": (lambda t: t.pop("pos_embed"), r"1 missing \(encoder.pos_embedding\)"),
    "flat positions": (lambda t: t.update(pos_embed=torch.zeros(197)), r"is float \[197\], not"),
    "no class token": (lambda t: t.pop("cls_token"), "no weights in a layout known here"),
    "pooled head": (lambda t: t.update({"fc_norm.bias": torch.zeros(192)}), r"\(fc_norm.bias\)"),
    "a block gone": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("blocks.5.")],
        r"12 missing \(encoder.layers.encoder_layer_5.ln_1.weight",
    ),
    "some scales": (
        lambda t: t.update({"blocks.0.ls1.gamma": torch.ones(192)}),
        r"23 of its LayerScale tensors are missing",
    ),
    "scales of another width": (
        lambda t: t.update(
            {f"blocks.{i}.ls{j}.gamma": torch.ones(7) for i in range(12) for j in (1, 2)}
        ),
        r"its LayerScale \[7\]: they do not fit",
    ),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_wrong_tensors(change, message, save):
    content = mae_file(network_of_timm())
    change(content["model"])
    with pytest.raises(UserError, match=message):
        load_model(save(content))


FOREIGN = {
    "timm's ViT": ("vit_tiny_patch16_224", {}, "whose models prepare pictures in many ways"),
    "DINOv3": (None, {"storage_tokens": torch.zeros(1, 4, 384)}, "looks like DINOv3"),
    "transformers": (None, {"embeddings.cls_token": torch.zeros(1)}, "transformers library"),
}


@pytest.mark.parametrize("name, tensors, message", FOREIGN.values(), ids=FOREIGN)
def test_networks_with_unknown_preprocessing_are_refused(name, tensors, message, save):
    path = save(tensors or timm.create_model(name).state_dict())
    with pytest.raises(UserError, match=message):
        load_model(path)


def test_layer_scale_alone_does_not_make_a_dinov2(save):
    path = save(timm.create_model("deit3_small_patch16_224").state_dict())
    for backbone in ("vit_s_16", "vit_s_16_h12"):
        with pytest.raises(UserError, match=f"a {backbone} with LayerScale, but not DINOv2's"):
            load_model(path, backbone=backbone)


# --------------------------------------------------------------------------- positions


def naive_bicubic(grid, size, scale):
    """Keys' cubic with a = -0.75 at (i + 0.5) / scale - 0.5, edges repeated, in float64."""

    def weight(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = np.zeros((size, len(grid)))
    for i in range(size):
        position = (i + 0.5) / scale - 0.5
        for j in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            matrix[i, min(max(j, 0), len(grid) - 1)] += weight(position - j)
    return matrix @ grid @ matrix.T


@pytest.mark.parametrize("antialias", [False, True])
def test_positions_are_interpolated_as_dinov2_does(antialias):
    positions = torch.randn(1, 1 + 37 * 37, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(positions, 16, antialias)
    assert torch.equal(resized[:, :1], positions[:, :1])
    grid = positions[0, 1:, 1].reshape(37, 37).numpy()
    if antialias:
        image = Image.fromarray(grid).resize((16, 16), Image.Resampling.BICUBIC)
        expected = np.array(image)
    else:
        expected = naive_bicubic(grid.astype(np.float64), 16, (16 + 0.1) / 37)
    found = resized[0, 1:, 1].reshape(16, 16).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_positions_of_the_right_size_are_kept():
    positions = torch.randn(1, 197, 3)
    assert resize_positions(positions, 14, antialias=False) is positions
