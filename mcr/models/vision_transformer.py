"""ViTs under timm's names -> the same network under torchvision's names.

MAE, MVP, VC-1 and DINOv2 are published under timm's names. torchvision's ViT computes the same,
once LayerScale is folded into the layer before it, so that no other class of network is needed.
Called by `models.layouts`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mcr.errors import UserError

_BLOCK = r"encoder.layers.encoder_layer_\1."
_NAMES = (
    (r"patch_embed\.proj\.", "conv_proj."),
    (r"blocks\.(\d+)\.norm1\.", _BLOCK + "ln_1."),
    (r"blocks\.(\d+)\.norm2\.", _BLOCK + "ln_2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", _BLOCK + "self_attention.in_proj_"),
    (r"blocks\.(\d+)\.attn\.proj\.", _BLOCK + "self_attention.out_proj."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", _BLOCK + "mlp.0."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", _BLOCK + "mlp.3."),
    (r"norm\.", "encoder.ln."),
    (r"cls_token$", "class_token"),
    (r"pos_embed$", "encoder.pos_embedding"),
)
# LayerScale's factors -> the layer whose output they multiply.
_SCALED = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}
_REGISTERS = ("register_tokens", "reg_token")  # DINOv2's name, timm's


def to_torchvision(tensors: Mapping[str, Tensor], image_size: int | None) -> dict[str, Tensor]:
    """Convert tensors to torchvision's names; names that are not timm's stay as they are.

    image_size: side of the pictures that will enter the network, in pixels; the positions are
        interpolated to it as in DINOv2; None = the positions stay as they are
    Raises UserError if only some blocks have LayerScale.
    """
    tensors = _fold_layer_scale(tensors)
    registers = [tensors.pop(name) for name in _REGISTERS if name in tensors]
    renamed = {_rename(name): tensor for name, tensor in tensors.items()}
    if not _is_whole(renamed, registers):  # loading will name what is wrong
        return renamed | {f"registers.{i}": tokens for i, tokens in enumerate(registers)}
    class_token, positions = renamed["class_token"], renamed["encoder.pos_embedding"]
    if _is_square(positions.shape[1]):  # timm has added its position to the class token itself
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if image_size is not None:
        grid = image_size // renamed["conv_proj.weight"].shape[-1]
        positions = resize_positions(positions, grid, antialias=bool(registers))
    for tokens in registers:
        class_token = torch.cat([class_token, tokens], dim=1)
        nowhere = torch.zeros_like(tokens)
        positions = torch.cat([positions[:, :1], nowhere, positions[:, 1:]], dim=1)
    return renamed | {"class_token": class_token, "encoder.pos_embedding": positions}


def _is_whole(renamed: Mapping[str, Tensor], registers: list[Tensor]) -> bool:
    """Whether all tensors that are combined here exist and fit each other."""
    tokens = [renamed.get("class_token"), renamed.get("encoder.pos_embedding"), *registers]
    if "conv_proj.weight" not in renamed or renamed["conv_proj.weight"].ndim != 4:
        return False
    if any(tensor is None or tensor.ndim != 3 for tensor in tokens):
        return False
    return (
        len({(tensor.shape[0], tensor.shape[-1]) for tensor in tokens if tensor is not None}) == 1
    )


def resize_positions(positions: Tensor, grid: int, antialias: bool) -> Tensor:
    """Interpolate position embeddings [1, 1 + n * n, D] to [1, 1 + grid * grid, D], as DINOv2 does.

    antialias: as DINOv2's models with registers, which scale by exactly grid / n; False = as those
        without registers, which scale by (grid + 0.1) / n. Another rule changes every feature.
    """
    num_patches = positions.shape[1] - 1
    side = round(num_patches**0.5)
    if side == grid or not _is_square(num_patches):
        return positions
    patches = rearrange(positions[:, 1:].float(), "1 (h w) d -> 1 d h w", h=side)
    if antialias:
        patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True)
    else:
        scale = (grid + 0.1) / side
        patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    patches = rearrange(patches, "1 d h w -> 1 (h w) d").to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)


def _fold_layer_scale(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply LayerScale into the layer before it: gamma * (W x + b) = (gamma W) x + gamma b."""
    folded = dict(tensors)
    blocks = {match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    gammas = [f"blocks.{block}.{scale}" for block in blocks for scale in _SCALED]
    if not any(name in tensors for name in gammas):
        return folded
    missing = [name for name in gammas if name not in tensors]
    if missing:
        raise UserError(
            f"{len(missing)} of its LayerScale tensors are missing ({sorted(missing)[0]}, ...), "
            "while others are there; nothing was loaded"
        )
    for block in blocks:
        for scale, layer in _SCALED.items():
            gamma = folded.pop(f"blocks.{block}.{scale}")
            for kind in ("weight", "bias"):
                name = f"blocks.{block}.{layer}.{kind}"
                if name in folded:
                    folded[name] = _scale_rows(folded[name], gamma, name)
    return folded


def _scale_rows(tensor: Tensor, factors: Tensor, name: str) -> Tensor:
    if tensor.ndim == 0 or factors.shape != tensor.shape[:1]:
        raise UserError(
            f"{name} is {list(tensor.shape)} and its LayerScale {list(factors.shape)}: they do not "
            "fit; nothing was loaded"
        )
    return rearrange(tensor, "d ... -> ... d").mul(factors).movedim(-1, 0)


def _rename(name: str) -> str:
    for pattern, replacement in _NAMES:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name


def _is_square(number: int) -> bool:
    return round(number**0.5) ** 2 == number
