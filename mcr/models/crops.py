"""Crops: stored frames, crop boxes and colours -> what enters the network, for a whole batch.

It runs on the device, so that only uint8 frames are copied to it. For each box the result equals
torchvision's `resized_crop(..., antialias=True)` followed by `normalize`. A change of colours is
linear, like normalisation, and is merged into it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def network_input(
    frames: Tensor,
    crops: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    colors: Tensor | None = None,
) -> Tensor:
    """Crop, resize, change colours and normalise.

    frames: uint8 [B, F, 3, H, W]
    crops:  float32 [B, F, 4], top, left, height, width in pixels
    colors: float32 [B, F, 2, 3], gain and offset of pixels in 0..1, whose results are not clipped;
            None = no change
    Returns float32 [B * F, 3, size, size] in channels_last memory, clip by clip.
    """
    images = crop_resize(rearrange(frames, "b f c h w -> (b f) c h w"), crops.flatten(0, 1), size)
    # Rows of channels_last memory are treated as vectors, because 3 channels would not vectorise.
    rows = rearrange(images, "n c h w -> n h (w c)").float()
    scale, shift = (
        _constants(values, rows.device) for values in _scale_and_shift(tuple(mean), tuple(std))
    )
    if colors is not None:
        gain, offset = rearrange(colors, "b f two c -> two (b f) 1 c")
        scale, shift = scale * gain, shift + 255 * scale * offset
    rows.mul_(scale.tile(size)).add_(shift.tile(size))
    return rearrange(rows, "n h (w c) -> n c h w", c=3)


@torch.compiler.assume_constant_result
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[list[float], ...]:
    """Normalisation of pixels in 0..255 as a factor and a summand, in float32 arithmetic."""
    means, stds = torch.tensor(mean), torch.tensor(std)
    return (1 / (255 * stds)).tolist(), (-means / stds).tolist()


def _constants(values: list[float], device: torch.device) -> Tensor:
    """Return float32 [len(values)], filled on the device, because copying would synchronise."""
    return torch.stack([torch.full((), value, device=device) for value in values])


def crop_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and resize it, bilinear with antialiasing.

    images: uint8 [N, 3, H, W]
    boxes:  float32 [N, 4], as in `network_input`
    Returns [N, 3, size, size] in 0..255: float32 on a GPU, rounded to uint8 on the CPU.
    """
    if images.device.type == "cpu":
        return _crop_resize_one_by_one(images, boxes, size)
    return crop_resize_batched(images, boxes, size)


def crop_resize_batched(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop and resize by batched matrix products: out = R @ image @ C^T, float32.

    R and C hold the interpolation weights of rows and columns, which differ from image to image.
    Most of the weights are zero, but dense products run on tensor cores, without a loop and without
    synchronisation with the host.
    """
    dtype = torch.float16 if images.device.type == "cuda" else torch.float32
    height, width = images.shape[-2:]
    rows = _interpolation_weights(boxes[:, 0], boxes[:, 2], size, height).to(dtype)
    columns = _interpolation_weights(boxes[:, 1], boxes[:, 3], size, width).to(dtype)
    # Autocast to bfloat16 would round pixels to 8 bits before they are averaged.
    with torch.autocast(images.device.type, enabled=False):
        resized = torch.einsum("noh,nchw,npw->ncop", rows, images.to(dtype), columns)
    return resized.float()


def _interpolation_weights(begin: Tensor, length: Tensor, size: int, extent: int) -> Tensor:
    """Return the weight of each input pixel for each output pixel, float32 [N, size, extent].

    The filter is a triangle as wide as an output pixel, but at least as an input pixel, and is cut
    off at the edges of the box. Pillow and torchvision call this antialiased bilinear. The weights
    of an output pixel sum to 1.
    """
    scale = (length / size)[:, None, None]
    out = torch.arange(size, device=begin.device)[None, :, None]
    pixel = torch.arange(extent, device=begin.device)[None, None, :]
    centre = begin[:, None, None] + (out + 0.5) * scale
    distance = (pixel + 0.5 - centre).abs() / scale.clamp(min=1)
    inside = (pixel >= begin[:, None, None]) & (pixel < (begin + length)[:, None, None])
    weights = (1 - distance).clamp(min=0) * inside
    return weights / weights.sum(-1, keepdim=True)


@torch.compiler.disable  # the loop would be compiled again for every set of boxes
def _crop_resize_one_by_one(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """On the CPU the vectorised uint8 kernel is far cheaper on each crop than dense products."""
    layout = torch.channels_last
    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8, memory_format=layout)
    for number, (top, left, height, width) in enumerate(boxes.int().tolist()):
        cut = images[number : number + 1, :, top : top + height, left : left + width]
        cut = cut.contiguous(memory_format=layout)
        out[number] = F.interpolate(cut, (size, size), mode="bilinear", antialias=True)[0]
    return out
