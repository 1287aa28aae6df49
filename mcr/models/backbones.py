"""Backbones: a name -> torchvision's network without its classification head.

A new backbone is one entry in `BACKBONES`; loading, exporting and their tests then cover it. The
networks here have random weights and take images that are normalised already. `training` trains
them as they are; `models.encoder` wraps the same networks for users.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck

from mcr.errors import UserError, require_choice
from mcr.runs.ranges import Range

TIMM = "timm:"  # what precedes the names of timm's networks, which are not in `BACKBONES`
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Backbone:
    """How to construct one network.

    family:        torchvision's class
    arguments:     arguments of its constructor
    embed_dim:     number of features
    num_registers: number of register tokens beside the class token (Darcet et al. 2023), which have
                   no position
    """

    family: type[ResNet] | type[VisionTransformer]
    arguments: Mapping[str, Any]
    embed_dim: int
    num_registers: int = 0


def _resnet(
    block: type[BasicBlock] | type[Bottleneck], layers: list[int], head: int = 0
) -> Backbone:
    """head: width of a last linear layer `fc`; 0 = no such layer, the pooled map is the output."""
    arguments = {"block": block, "layers": layers} | ({"num_classes": head} if head else {})
    return Backbone(ResNet, arguments, head or 512 * block.expansion)


def _vit(
    width: int, num_heads: int, patch: int = 16, num_layers: int = 12, num_registers: int = 0
) -> Backbone:
    """The MLP is four times as wide as the tokens, as in the ViT paper."""
    arguments = {
        "patch_size": patch,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": width,
        "mlp_dim": 4 * width,
    }
    return Backbone(VisionTransformer, arguments, width, num_registers)


BACKBONES = {
    "resnet18": _resnet(BasicBlock, [2, 2, 2, 2]),
    "resnet34": _resnet(BasicBlock, [3, 4, 6, 3]),
    "resnet50": _resnet(Bottleneck, [3, 4, 6, 3]),
    "resnet50_fc1024": _resnet(Bottleneck, [3, 4, 6, 3], head=1024),  # VIP's
    "vit_ti_16": _vit(192, num_heads=3),
    "vit_s_16": _vit(384, num_heads=6),
    "vit_s_16_h12": _vit(384, num_heads=12),  # MVP's and MoCo v3's; the same tensors as vit_s_16
    "vit_b_16": _vit(768, num_heads=12),
    "vit_l_16": _vit(1024, num_heads=16, num_layers=24),
    "vit_s_14": _vit(384, num_heads=6, patch=14),
    "vit_b_14": _vit(768, num_heads=12, patch=14),
    "vit_l_14": _vit(1024, num_heads=16, patch=14, num_layers=24),
    "vit_s_14_reg4": _vit(384, num_heads=6, patch=14, num_registers=4),
    "vit_b_14_reg4": _vit(768, num_heads=12, patch=14, num_registers=4),
    "vit_l_14_reg4": _vit(1024, num_heads=16, patch=14, num_layers=24, num_registers=4),
}


NETWORK_NAME = Range(
    f"a name of mcr.models.backbones.BACKBONES, or {TIMM}NAME",
    lambda name: name in BACKBONES or re.match(f"{TIMM}.", str(name)) is not None,
    ("resnet51", TIMM, 50),
    names=(*BACKBONES, f"{TIMM}NAME"),
)


def build_backbone(name: str, image_size: int = 224) -> nn.Module:
    """Return torchvision's network `name` with random weights and an Identity as its head.

    It maps normalised images, float [B, 3, image_size, image_size], to features, float
    [B, embed_dim], and has the attribute `embed_dim`. A ResNet takes images of other sizes too.
    Raises UserError for an unknown name, or if a ViT's patches do not divide `image_size`.
    """
    network = BACKBONES[require_choice("backbone", name, BACKBONES)].family
    return construct(network, name, image_size)


def construct(network_class: type[Network], name: str, image_size: int) -> Network:
    """Construct the backbone `name` as `network_class`: its family, or a subclass of it."""
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
    if "num_classes" not in arguments:
        setattr(network, "fc" if isinstance(network, ResNet) else "heads", nn.Identity())
    if backbone.num_registers:
        _add_registers(network, backbone.num_registers)
    network.embed_dim = backbone.embed_dim  # type: ignore[assignment]
    return network


def _add_registers(network: Any, num_registers: int) -> None:
    """Lengthen the class token to [1, 1 + R, D], and the positions accordingly.

    torchvision puts the class token before the patches, whatever its length, and returns the first
    token. Its own `forward` is then that of a ViT with registers.
    """
    width = network.class_token.shape[-1]
    tokens = torch.empty(1, num_registers, width).normal_(std=0.02)
    positions = network.encoder.pos_embedding
    no_position = torch.zeros(1, num_registers, width)
    positions = torch.cat([positions[:, :1], no_position, positions[:, 1:]], dim=1)
    network.class_token = nn.Parameter(torch.cat([network.class_token, tokens], dim=1).detach())
    network.encoder.pos_embedding = nn.Parameter(positions.detach())


def identify_backbone(tensors: Mapping[str, Tensor]) -> str:
    """Return the backbone whose tensors' names and shapes are most like those of `tensors`.

    The measure is the size of the intersection over that of the union, because every name of a
    ResNet-18 is also one of a ResNet-34. A few missing or unknown tensors are tolerated here, so
    that loading can name them.
    Raises UserError if the measure is below one half, or if several backbones have these tensors:
    the number of attention heads cannot be seen in them.
    """
    shapes = {(name, tensor.shape) for name, tensor in tensors.items()}
    is_vit = any(name.startswith("encoder.layers.") for name in tensors)
    family = VisionTransformer if is_vit else ResNet
    likeness = {
        name: len(shapes & known) / len(shapes | known)
        for name, known in (
            (name, _shapes(name)) for name in BACKBONES if BACKBONES[name].family is family
        )
    }
    most = max(likeness.values())
    if most < 0.5:
        raise UserError(
            f"its {len(tensors)} tensors ({', '.join(list(tensors)[:3])}, ...) are those of no "
            f"encoder known here ({', '.join(BACKBONES)})"
        )
    best = [name for name in likeness if likeness[name] == most]
    if len(best) > 1:
        raise UserError(
            f"it may be a {' or a '.join(best)}, which differ in the number of attention heads and "
            f"not in their tensors: say which, as in load_model(..., backbone={best[0]!r})"
        )
    return best[0]


@cache
def _shapes(name: str) -> frozenset[tuple[str, torch.Size]]:
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    return frozenset((key, tensor.shape) for key, tensor in state.items())


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that always uses its running statistics and never updates them."""

    def train(self, mode: bool = True) -> FixedBatchNorm2d:
        super().train(False)
        return self


def freeze_batch_norm(network: nn.Module) -> None:
    """Fix the running statistics of every BatchNorm2d in `network`; scales and shifts still learn.

    The layers change their class in place. They therefore stay fixed when the network is wrapped,
    taken apart or switched to training, and the names of its tensors do not change.
    """
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = FixedBatchNorm2d
            module.eval()


def contexts_of_passes(
    layer: nn.Module,
) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """The contexts of a layer's first pass and of the second one, which computes it again.

    torch.utils.checkpoint takes them. Running statistics are updated by the first pass alone.
    """
    return contextlib.nullcontext(), statistics_kept(layer)


@contextlib.contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics as they are: passes inside the block update copies of them.

    For passes that are computed a second time, and for those that are not part of training.
    """
    kept = [
        (layer, name, buffer)
        for layer in network.modules()
        if isinstance(layer, nn.BatchNorm2d)
        for name, buffer in layer.named_buffers()
    ]
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
