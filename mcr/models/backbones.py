"""Backbones: a name -> torchvision's network without its classification head, and its width.

A new backbone is one entry in `BACKBONES`; loading, exporting and their tests follow. Networks are
bare here: random weights in, normalised images in, features out. `training` trains them as they
are; `models.encoder` wraps the same networks for users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck

from mcr.errors import UserError, require_choice

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Backbone:
    """How to construct one network.

    family: torchvision's class; arguments: what its constructor is given; embed_dim: features.
    """

    family: type[ResNet] | type[VisionTransformer]
    arguments: Mapping[str, Any]
    embed_dim: int


def _resnet(block: type[BasicBlock] | type[Bottleneck], layers: list[int]) -> Backbone:
    return Backbone(ResNet, {"block": block, "layers": layers}, 512 * block.expansion)


def _vit(width: int, num_heads: int) -> Backbone:
    """Twelve layers on 16 x 16 patches; the MLP is four times as wide, as in the ViT paper."""
    arguments = {
        "patch_size": 16,
        "num_layers": 12,
        "num_heads": num_heads,
        "hidden_dim": width,
        "mlp_dim": 4 * width,
    }
    return Backbone(VisionTransformer, arguments, width)


BACKBONES = {
    "resnet18": _resnet(BasicBlock, [2, 2, 2, 2]),
    "resnet34": _resnet(BasicBlock, [3, 4, 6, 3]),
    "resnet50": _resnet(Bottleneck, [3, 4, 6, 3]),
    "vit_ti_16": _vit(192, num_heads=3),
    "vit_s_16": _vit(384, num_heads=6),
    "vit_b_16": _vit(768, num_heads=12),
}


def build_backbone(name: str, image_size: int = 224) -> nn.Module:
    """torchvision's network `name` with random weights and an Identity for its head.

    It maps normalised images, float [B, 3, image_size, image_size], to float [B, embed_dim] and
    carries `embed_dim`. A ResNet takes other sizes too; a ViT takes only this one.
    Raises UserError for an unknown name or an impossible size.
    """
    network = BACKBONES[require_choice("backbone", name, BACKBONES)].family
    return construct(network, name, image_size)


def construct(network_class: type[Network], name: str, image_size: int) -> Network:
    """Construct the backbone `name` as `network_class`, which is its family or a subclass of it."""
    backbone = BACKBONES[name]
    arguments = dict(backbone.arguments)
    if issubclass(backbone.family, VisionTransformer):
        patch = arguments["patch_size"]
        if image_size < patch or image_size % patch:
            raise UserError(
                f"image_size={image_size} does not fit {name}: choose a multiple of {patch}"
            )
        arguments["image_size"] = image_size
    network = network_class(**arguments)
    setattr(network, "fc" if isinstance(network, ResNet) else "heads", nn.Identity())
    network.embed_dim = backbone.embed_dim  # type: ignore[assignment]
    return network


def identify_backbone(tensors: Mapping[str, Tensor]) -> str:
    """The backbone whose names and shapes are most like those of `tensors`.

    The likeness is that of sets, shared / all, because every name of a ResNet-18 is also one of a
    ResNet-34. It tolerates a few missing or foreign tensors, so that an error can name them.
    Raises UserError when less than half agrees.
    """
    shapes = {(name, tensor.shape) for name, tensor in tensors.items()}
    likeness = {
        name: len(shapes & known) / len(shapes | known)
        for name, known in ((name, _shapes(name)) for name in BACKBONES)
    }
    best = max(likeness, key=likeness.__getitem__)
    if likeness[best] < 0.5:
        raise UserError(
            f"its {len(tensors)} tensors ({', '.join(list(tensors)[:3])}, ...) are those of no "
            f"encoder known here ({', '.join(BACKBONES)})"
        )
    return best


@cache
def _shapes(name: str) -> frozenset[tuple[str, torch.Size]]:
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    return frozenset((key, tensor.shape) for key, tensor in state.items())


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that uses its statistics and never changes them, whatever the mode."""

    def train(self, mode: bool = True) -> FixedBatchNorm2d:
        super().train(False)
        return self


def freeze_batch_norm(network: nn.Module) -> None:
    """Fix the statistics of every BatchNorm2d in `network` for ever; scales and shifts still learn.

    The layers change class in place, so that it holds however the network is taken apart, wrapped
    or switched to training, and tensors and their names stay the same.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = FixedBatchNorm2d
            module.eval()
