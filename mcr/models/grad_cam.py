"""Grad-CAM: which regions of a picture an output of an encoder depends on.

It works on bare backbones and on Encoders, frozen or not. The gradient is taken with respect to the
last feature map: nothing is backpropagated through the layers before it, and no parameter's `.grad`
is changed. Used by `training.pictures` and by `evaluation.centricity`.
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
from mcr.models.blocks import last_map_of_timm
from mcr.models.encoder import Encoder


@torch.enable_grad()
def grad_cam(network: nn.Module, pixels: Tensor, unit: int | None = None) -> Tensor:
    """Return maps of the regions that raise an output, float32 [N, H, W] in [0, 1].

    network: an Encoder, or a bare network of torchvision or timm in eval mode
    pixels:  what enters the network, normalised float [N, 3, H, W] (`encoder.preprocess(images)`)
    unit:    the output unit to explain; None = the largest of each picture, as in MCR's paper

    Selvaraju et al. 2017 (arXiv 1610.02391): the channels of the last feature map are weighted by
    their mean gradient and summed, negative values are set to 0, and each map is scaled to [0, 1]
    as the grad-cam package does. A map stays 0 if no region raises the output. The outputs of a
    ResNet without `fc` are its pooled channels, so its map is that of the one channel explained.
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
    """Return the last feature map [N, C, h, w] and the embeddings [N, D] computed from it.

    The autograd graph begins at the map. A ResNet's map is the output of `layer4`; a ViT's are the
    patch tokens as they enter the last block's attention, after which only the class token reaches
    the output.
    Raises UserError for another network.
    """
    layer, embed = _layer_and_function(network)
    found: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Begin the autograd graph at this layer's output."""
        torch.set_grad_enabled(True)
        if output.dim() == 4:
            found.append(output.detach().requires_grad_())
            return found[0]
        side = math.isqrt(output.shape[1])  # the patches form a square, other tokens come first
        others, patches = output.detach().tensor_split([output.shape[1] - side**2], dim=1)
        found.append(rearrange(patches, "n (h w) c -> n c h w", h=side).requires_grad_())
        return torch.cat([others, rearrange(found[0], "n c h w -> n (h w) c")], dim=1)

    with torch.no_grad(), layer.register_forward_hook(cut):
        embeddings = embed(pixels)
    return found[0], embeddings


def _layer_and_function(network: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The layer to explain, and the function from normalised pixels to embeddings."""
    if isinstance(network, Encoder):
        return network.grad_cam_layer, network.encode
    if isinstance(network, ResNet):
        return network.layer4, network
    if isinstance(network, VisionTransformer):
        return network.encoder.layers[-1].ln_1, network
    if hasattr(network, "feature_info"):  # timm's
        return last_map_of_timm(network), network
    raise UserError(f"Grad-CAM knows no feature map of a {type(network).__name__}")
