"""Blocks: the residual or transformer blocks of a bare network, in the order in which they run.

`training` recomputes activations block by block, and gives each block a learning rate of its own.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vision_transformer import EncoderBlock

_KINDS = (BasicBlock, Bottleneck, EncoderBlock)
# The names under which timm's networks keep their blocks, or stages of blocks.
_HOLDERS = ("blocks", "stages", "layers", "layer1", "layer2", "layer3", "layer4")


def blocks_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return {name in the network: block}; it is empty if the network has none that is known here.

    A stage of timm's that is no plain sequence counts as one block.
    """
    known = {name: m for name, m in network.named_modules() if isinstance(m, _KINDS)}
    if known:
        return known
    found: dict[str, nn.Module] = {}
    for holder in _HOLDERS:
        for name, part in getattr(network, holder, nn.Module()).named_children():
            inner = part.named_children() if isinstance(part, nn.Sequential) else [("", part)]
            found |= {f"{holder}.{name}.{below}".rstrip("."): block for below, block in inner}
    return found


def layers_of(network: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each layer, from input to output.

    The first layer is everything before the first block (stem, tokens, positions), then each block
    is one, and the last is everything after the last block. Without known blocks there is one.
    """
    blocks = list(blocks_of(network))
    names = [name for name, _ in network.named_parameters()]
    layers: list[list[str]] = [[] for _ in range(len(blocks) + 2)]
    place = 0
    for name in names:
        owner = next((i for i, b in enumerate(blocks, 1) if name.startswith(f"{b}.")), None)
        place = owner or (len(blocks) + 1 if place else 0)
        layers[place].append(name)
    return [layer for layer in layers if layer]


def last_map_of_timm(network: Any) -> nn.Module:
    """Return the layer of a network of timm whose output Grad-CAM uses: see `models.grad_cam`."""
    if hasattr(network, "blocks") and hasattr(network.blocks[-1], "norm1"):  # a ViT
        return network.blocks[-1].norm1  # after it only the class token counts
    return network.get_submodule(network.feature_info[-1]["module"])
