"""Crops: stored frames and boxes -> what enters the network, for a whole batch at once.

Runs on the device, so that only uint8 frames travel. Equals torchvision's
`resized_crop(..., antialias=True)` followed by `normalize`, box by box.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def network_input(
    frames: Tensor, crops: Tensor, size: int, mean: list[float], std: list[float]
) -> Tensor:
    """Crop, resize and normalise.

    frames: uint8 [B, F, 3, H, W]; crops: float32 [B, F, 4] top, left, height, width in pixels
    returns float32 [B * F, 3, size, size] in channels_last memory, clip by clip
    """
    images = crop_resize(rearrange(frames, "b f c h w -> (b f) c h w"), crops.flatten(0, 1), size)
    shift = 255 * torch.tensor(mean, device=images.device).view(3, 1, 1)
    scale = 255 * torch.tensor(std, device=images.device).view(3, 1, 1)
    return images.sub_(shift).div_(scale).contiguous(memory_format=torch.channels_last)


def crop_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and resize it, bilinear with antialiasing.

    images: uint8 [N, 3, H, W]; boxes: float32 [N, 4]; returns float32 [N, 3, size, size], 0..255
    """
    if images.device.type == "cpu":
        return _crop_resize_one_by_one(images, boxes, size)
    return crop_resize_batched(images, boxes, size)


def crop_resize_batched(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The resize as two batched matrix products, rows then columns: every image has its own box.

    Interpolation weights are linear in the pixels, and separable: out = R @ image @ C^T. Dense
    products waste multiplications on zeros but run on tensor cores, without a loop or a host sync.
    """
    dtype = torch.float16 if images.device.type == "cuda" else torch.float32
    height, width = images.shape[-2:]
    rows = _interpolation_weights(boxes[:, 0], boxes[:, 2], size, height).to(dtype)
    columns = _interpolation_weights(boxes[:, 1], boxes[:, 3], size, width).to(dtype)
    resized = torch.einsum("noh,nchw,npw->ncop", rows, images.to(dtype), columns)
    return resized.float()


def _interpolation_weights(begin: Tensor, length: Tensor, size: int, extent: int) -> Tensor:
    """Weight of each input pixel for each output pixel, float32 [N, size, extent], rows sum to 1.

    A triangle filter as wide as an output pixel (at least one input pixel), cut off at the box's
    edges: what Pillow and torchvision call antialiased bilinear.
    """
    scale = (length / size)[:, None, None]
    out = torch.arange(size, device=begin.device)[None, :, None]
    pixel = torch.arange(extent, device=begin.device)[None, None, :]
    centre = begin[:, None, None] + (out + 0.5) * scale
    distance = (pixel + 0.5 - centre).abs() / scale.clamp(min=1)
    inside = (pixel >= begin[:, None, None]) & (pixel < (begin + length)[:, None, None])
    weights = (1 - distance).clamp(min=0) * inside
    return weights / weights.sum(-1, keepdim=True)


def _crop_resize_one_by_one(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """On the CPU the vectorised kernel on each cut-out beats dense products about tenfold."""
    out = torch.empty(len(images), 3, size, size).contiguous(memory_format=torch.channels_last)
    for image, (top, left, height, width), target in zip(
        images, boxes.int().tolist(), out, strict=True
    ):
        cut = image[None, :, top : top + height, left : left + width]
        target.copy_(F.interpolate(cut, (size, size), mode="bilinear", antialias=True)[0])
    return out
