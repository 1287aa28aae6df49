"""Grad-CAM: where in a picture an encoder looks.

Works on bare backbones and on Encoders, whatever is frozen in them: the gradient is taken from the
last feature map on, so that no parameter's gradient and no earlier layer is touched. Called by
`training.pictures`; the masks of a manipulation-centricity score come from here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer

from mcr.errors import UserError
from mcr.models.encoder import Encoder


@torch.enable_grad()
def grad_cam(network: nn.Module, pixels: Tensor, unit: int | None = None) -> Tensor:
    """Maps of what raised an output, float32 [N, H, W] in [0, 1] (all 0 where nothing did).

    network: an Encoder, or a bare ResNet or VisionTransformer in eval mode
    pixels:  what enters the network, normalised float [N, 3, H, W] (`encoder.preprocess(images)`)
    unit:    the output unit to explain; None = each picture's largest, as MCR's paper does

    Selvaraju et al. 2017 (arXiv 1610.02391): the channels of the last feature map, weighed by their
    mean gradient, summed, cut off below 0, scaled per picture as the grad-cam package does. A bare
    ResNet's outputs are its pooled channels: there this is the map of the one channel explained.
    """
    features, outputs = feature_map(network, pixels)
    scores = outputs.amax(dim=1) if unit is None else outputs[:, unit]
    (gradient,) = torch.autograd.grad(scores.sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = (weights * features).detach().sum(dim=1, keepdim=True).relu().float()
    maps = F.interpolate(maps, pixels.shape[-2:], mode="bilinear")[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def feature_map(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(last feature map [N, C, h, w], embeddings [N, D]); the graph goes from the one to the other.

    Of a ResNet: what `layer4` gives. Of a ViT: the patch tokens as they enter the last block's
    attention, beyond which only the class token reaches the output.
    Raises UserError for another network.
    """
    layer, embed = _layer_and_function(network)
    found: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Let the graph begin here; earlier layers have kept no activations."""
        torch.set_grad_enabled(True)
        if output.dim() == 4:
            found.append(output.detach().requires_grad_())
            return found[0]
        side = math.isqrt(output.shape[1])  # patches make a square, few other tokens come first
        others, patches = output.detach().tensor_split([output.shape[1] - side**2], dim=1)
        found.append(rearrange(patches, "n (h w) c -> n c h w", h=side).requires_grad_())
        return torch.cat([others, rearrange(found[0], "n c h w -> n (h w) c")], dim=1)

    with torch.no_grad(), layer.register_forward_hook(cut):
        embeddings = embed(pixels)
    return found[0], embeddings


def _layer_and_function(network: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The layer that is explained, and normalised pixels -> embeddings."""
    if isinstance(network, Encoder):
        return network.grad_cam_layer, network.encode
    if isinstance(network, ResNet):
        return network.layer4, network
    if isinstance(network, VisionTransformer):
        return network.encoder.layers[-1].ln_1, network
    raise UserError(f"Grad-CAM knows no feature map of a {type(network).__name__}")
