"""Encoder: weights that people can use without reading a paper. `load_model` is the way in.

An Encoder is torchvision's network, same tensors and layer names, that takes raw images, applies
its own preprocessing and stays frozen. Which files can be read is in `models.layouts`; training
works on bare backbones and never on this.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer

from mcr.errors import UserError, nearest, require_choice
from mcr.models.backbones import BACKBONES, Network, construct, freeze_batch_norm
from mcr.models.layouts import Weights, read_weights
from mcr.models.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

OUTPUTS = ("pooled", "spatial", "tokens")


class Encoder(nn.Module):
    """What all loaded encoders share; always mixed into one of torchvision's networks.

    backbone: its name; embed_dim: the width D of its features; preprocessing: what it expects.
    """

    backbone: str
    embed_dim: int
    preprocessing: Preprocessing

    def forward(self, images: Any) -> Tensor:
        """Raw images -> pooled features, float [..., D]: see `Preprocessing` for what `images` is.

        The leading dimensions are those of the images; a single picture gives [D].
        """
        return self.features(images)

    def features(self, images: Any, output: str = "pooled") -> Tensor:
        """Raw images -> features.

        output: "pooled"  [..., D]         the mean over the picture; of a ViT, its class token
                "spatial" [..., D, h, w]   the last feature map
                "tokens"  [..., h * w, D]  the same map, row by row; no class token
        """
        require_choice("output", output, OUTPUTS)
        # Upstream: the network is bare, and its example omits the normalisation that training used.
        pixels = self.preprocess(images)
        pixels = pixels.to(next(self.parameters()).dtype)
        leading = pixels.shape[:-3]
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        if output == "pooled":
            features = self._pooled(pixels)
        else:
            features = self._spatial(pixels)
            if output == "tokens":
                features = rearrange(features, "b d h w -> b (h w) d")
        return features.reshape(*leading, *features.shape[1:])

    def preprocess(self, images: Any) -> Tensor:
        """Raw images -> what enters the network, float32 [..., 3, S, S] on the encoder's device."""
        return self.preprocessing(images, next(self.parameters()).device)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What the encoder expects, under timm's names."""
        size = self.preprocessing.image_size
        return {
            "architecture": self.backbone,
            "input_size": (3, size, size),
            "interpolation": self.preprocessing.interpolation,
            "crop_pct": size / self.preprocessing.resize,
            "crop_mode": "center",
            "mean": self.preprocessing.mean,
            "std": self.preprocessing.std,
            "num_classes": 0,
        }

    def train(self, mode: bool = True) -> Encoder:
        """Stay in eval mode: `policy.train()` must move no statistic, even of trainable layers."""
        super().train(False)
        return self

    def _pooled(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] -> [B, D]."""
        raise NotImplementedError

    def _spatial(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] -> [B, D, h, w]."""
        raise NotImplementedError


class ResNetEncoder(Encoder, ResNet):
    """A torchvision ResNet with `fc` an Identity; `layer4` is the usual target of Grad-CAM."""

    def _pooled(self, pixels: Tensor) -> Tensor:
        return ResNet.forward(self, pixels)

    def _spatial(self, pixels: Tensor) -> Tensor:
        stem = ("conv1", "bn1", "relu", "maxpool")
        for name in (*stem, "layer1", "layer2", "layer3", "layer4"):
            pixels = self.get_submodule(name)(pixels)
        return pixels


class VisionTransformerEncoder(Encoder, VisionTransformer):
    """A torchvision VisionTransformer with `heads` an Identity."""

    conv_proj: nn.Module
    class_token: Tensor
    encoder: nn.Module

    def _pooled(self, pixels: Tensor) -> Tensor:
        return VisionTransformer.forward(self, pixels)

    def _spatial(self, pixels: Tensor) -> Tensor:
        grid = self.conv_proj(pixels)
        height = grid.shape[-2]
        tokens = rearrange(grid, "b d h w -> b (h w) d")
        class_token = self.class_token.expand(len(tokens), -1, -1)
        tokens = self.encoder(torch.cat([class_token, tokens], dim=1))[:, 1:]
        return rearrange(tokens, "b (h w) d -> b d h w", h=height)


_ENCODERS: dict[type[nn.Module], type[Encoder]] = {
    ResNet: ResNetEncoder,
    VisionTransformer: VisionTransformerEncoder,
}


def load_model(
    path: str | Path, device: torch.device | str | None = None, trainable: Iterable[str] = ()
) -> Encoder:
    """Load an encoder: frozen, in eval mode, with its preprocessing inside.

    path: upstream's released file or training snapshot, R3M's model.pt, a training checkpoint or an
        export of ours (the folder, or the .safetensors in it).
    device: where to put it; None = the CPU.
    trainable: layers that shall learn, by name ("layer4", "layer4.1.conv2", "encoder.layers");
        batch normalisation keeps its statistics in them too.

    Every tensor of the network comes from the file, or UserError says what is wrong with it.
    Nothing in the file is executed. The number of tensors is logged at level INFO.
    """
    weights = read_weights(path)
    encoder = build_encoder(weights)
    _unfreeze(encoder, [trainable] if isinstance(trainable, str) else list(trainable))
    return encoder if device is None else encoder.to(device)


def load_mcr(
    ckpt_path: str | Path = "./ckpts/mcr_resnet50.pth", device: torch.device | str | None = None
) -> nn.Module:
    """Upstream's legacy loader: the bare torchvision network in eval mode, not frozen.

    It takes images that are resized, cropped and ImageNet-normalised already, and warns of that;
    `load_model` does it by itself. device: None = a GPU if there is one, as upstream.
    """
    warnings.warn(
        "load_mcr returns the bare network: resize, crop and ImageNet-normalise images yourself, "
        "or use mcr.load_model, which takes raw images",
        stacklevel=2,
    )
    weights = read_weights(ckpt_path)
    network = _fill(BACKBONES[weights.backbone].family, weights).eval()
    return network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def build_encoder(weights: Weights) -> Encoder:
    """The frozen encoder on the CPU. It takes the tensors of `weights` over, without a copy."""
    encoder = _fill(_ENCODERS[BACKBONES[weights.backbone].family], weights)
    encoder.backbone = weights.backbone
    encoder.preprocessing = weights.preprocessing
    freeze_batch_norm(encoder)
    return encoder.requires_grad_(False).eval()


def _fill(network_class: type[Network], weights: Weights) -> Network:
    """Construct the network without initialising it and give it all of the tensors, strictly."""
    with torch.device("meta"):
        network = construct(network_class, weights.backbone, weights.preprocessing.image_size)
    expected = network.state_dict()
    _require_same(weights, expected)
    network.load_state_dict(weights.tensors, strict=True, assign=True)
    logger.info(
        "%d/%d tensors loaded from %s (%s, %s)",
        len(weights.tensors),
        len(expected),
        weights.path,
        weights.layout,
        weights.backbone,
    )
    return network


def _require_same(weights: Weights, expected: dict[str, Tensor]) -> None:
    found = weights.tensors
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {_kind(found[name])}, not {_kind(tensor)}"
        for name, tensor in expected.items()
        if name in found and _kind(found[name]) != _kind(tensor)
    ]
    problems = [
        f"{len(names)} {what} ({_shorten(names)})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", misshapen),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{weights.path}: the tensors of this {weights.layout} do not fill a "
            f"{weights.backbone}: {'; '.join(problems)}; nothing was loaded"
        )


def _kind(tensor: Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else 'integer'} {list(tensor.shape)}"


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _unfreeze(encoder: Encoder, layers: list[str]) -> None:
    """Let the parameters of these layers learn."""
    paths = [name.split(".") for name, _ in encoder.named_parameters()]
    known = {".".join(path[:depth]) for path in paths for depth in (1, 2)}
    for layer in layers:
        chosen = [
            parameter
            for name, parameter in encoder.named_parameters()
            if name == layer or name.startswith(f"{layer}.")
        ]
        if not chosen:
            raise UserError(
                f"trainable={layer!r} has no parameters in this {encoder.backbone}"
                f"{nearest(layer, known)}"
            )
        for parameter in chosen:
            parameter.requires_grad_(True)
