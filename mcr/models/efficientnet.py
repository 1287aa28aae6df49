"""EfficientNets under the names of the package efficientnet-pytorch -> under timm's names.

That is how EfficientNet-Lite's weights are published for PyTorch. Called by `models.timm_encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

MARK = "_conv_stem.weight"  # a tensor that only such files have

_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# A block that does not expand has one convolution less, and timm names the others anew.
_BLOCK_WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def to_timm(tensors: Mapping[str, Tensor], stage_lengths: Sequence[int]) -> dict[str, Tensor]:
    """Rename tensors; names that are not efficientnet-pytorch's stay as they are.

    stage_lengths: number of blocks in each of the network's stages; the file numbers blocks through
    """
    places = _places(stage_lengths)
    return {_rename(name, tensors, places): tensor for name, tensor in tensors.items()}


def _places(stage_lengths: Sequence[int]) -> list[str]:
    """The names of all blocks in timm: blocks.0.0, blocks.1.0, blocks.1.1, ..."""
    return [
        f"blocks.{stage}.{block}"
        for stage, length in enumerate(stage_lengths)
        for block in range(length)
    ]


def _rename(name: str, tensors: Mapping[str, Tensor], places: Sequence[str]) -> str:
    first, _, rest = name.partition(".")
    if first != "_blocks":
        return f"{_OUTSIDE.get(first, first)}.{rest}"
    number, layer, kind = rest.split(".")
    if int(number) >= len(places):  # loading will name it
        return name
    expands = f"_blocks.{number}._expand_conv.weight" in tensors
    layers = _BLOCK if expands else _BLOCK_WITHOUT_EXPANSION
    return f"{places[int(number)]}.{layers.get(layer, layer)}.{kind}"
