"""Preprocessing: pictures of any type and size -> what enters the network, or a clear error.

An encoder carries its preprocessing as data and applies it itself, because wrong preprocessing is
common and goes unnoticed. Training makes random crops instead (`models.crops`), and takes only the
size and the normalisation from here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from mcr.errors import UserError, nearest
from mcr.runs.ranges import NAME, check_fields, choice, each, number, ranges_of, whole

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MOST_PIXELS = 4096  # per side of what enters a network; more is a damaged or malicious number

_MEANS = each(number(least=-1e3, most=1e3), count=3)
_DEVIATIONS = each(number(least=1e-3, most=1e3), count=3)

# A picture may be this many times as long as wide. Resizing would turn one of 60,000 x 1 pixels
# into one of 15 million x 256.
_MOST_ELONGATED = 32

# Float pictures may exceed [0, 1] by this much, because bfloat16 and resampling round.
_RANGE_TOLERANCE = 4e-3

# Float images without a higher value than this are nearly black, or were divided by 255 twice.
_DARKEST = 1.02 / 255


@dataclass(frozen=True)
class Preprocessing:
    """How an encoder prepares pictures. Checkpoints and exports contain it.

    resize:        pixels of the shorter side after resizing, which is antialiased
    image_size:    pixels per side of the centre crop that follows
    mean, std:     of RGB in [0, 1]
    interpolation: "bilinear" or "bicubic"
    Raises UserError for impossible values.
    """

    image_size: Annotated[int, whole(1, MOST_PIXELS)] = 224
    resize: Annotated[int, whole(1, 2 * MOST_PIXELS)] = 256
    mean: Annotated[tuple[float, ...], _MEANS] = IMAGENET_MEAN
    std: Annotated[tuple[float, ...], _DEVIATIONS] = IMAGENET_STD
    interpolation: Annotated[str, choice(("bilinear", "bicubic"))] = "bilinear"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image_size > self.resize:
            raise UserError(
                f"image_size={self.image_size} must be at least 1 and at most resize={self.resize}"
            )

    @classmethod
    def for_size(cls, image_size: int) -> Preprocessing:
        """Return the default for an image size: `resize` is 256/224 of it."""
        return cls(image_size=image_size, resize=round(image_size * 256 / 224))

    def resized(self, image_size: int) -> Preprocessing:
        """Return the same for another size of picture, with `resize` in proportion."""
        if image_size == self.image_size:
            return self
        resize = round(image_size * self.resize / self.image_size)
        return replace(self, image_size=image_size, resize=resize)

    def encoder_config(self, backbone: str) -> dict[str, Any]:
        """Return what checkpoints hold under `encoder_config`; `from_config` reads it."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {"backbone": backbone, **values}

    def pretrained_cfg(self, backbone: str) -> dict[str, Any]:
        """Return the same under timm's names."""
        return {
            "architecture": backbone,
            "input_size": (3, self.image_size, self.image_size),
            "interpolation": self.interpolation,
            "crop_pct": self.image_size / self.resize,
            "crop_mode": "center",
            "mean": self.mean,
            "std": self.std,
            "num_classes": 0,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> tuple[str, Preprocessing]:
        """Return the backbone and the preprocessing of what `encoder_config` returned.

        Raises UserError for a missing or unknown field or a value of the wrong kind.
        """
        if not isinstance(config, Mapping):
            raise UserError(f"encoder_config is a {type(config).__name__}, not a dictionary")
        names = ["backbone", *(field.name for field in fields(cls))]
        for name in config:
            if name not in names:
                raise UserError(
                    f"encoder_config has an unknown field {name!r}{nearest(name, names)}"
                )
        if missing := [name for name in names if name not in config]:
            raise UserError(f"encoder_config lacks {', '.join(missing)}")
        for name, allowed in {"backbone": NAME, **ranges_of(cls)}.items():
            if isinstance(config[name], str | int | float):
                allowed.require(f"encoder_config.{name}", config[name])
            elif not allowed.holds(config[name]):  # its text may be of any length
                raise UserError(
                    f"encoder_config has a value of the wrong kind: {name} must be "
                    f"{allowed.allowed}"
                )
        values = dict(config, mean=tuple(config["mean"]), std=tuple(config["std"]))
        backbone: str = values.pop("backbone")
        return backbone, cls(**values)

    def __call__(self, images: Any, device: torch.device | str = "cpu") -> Tensor:
        """Check, resize, crop and normalise on `device`.

        images: one or several RGB pictures of any size:
            a PIL image, or a list of pictures, which may differ in size;
            a torch tensor or NumPy array, uint8 in 0..255 or float in [0, 1],
            [..., 3, H, W] or [..., H, W, 3] with any number of leading dimensions
        Returns float32 [..., 3, image_size, image_size]. Gradients flow to float input.
        Raises UserError for any other shape, dtype or range, and names the likely mistake. The
        check of float images on a GPU synchronises with it; uint8 images there are not checked.
        Warns if all images are black, because floats that were cast to uint8 are.

        Equals torchvision's Resize, CenterCrop and Normalize on float images; bicubic overshoot is
        clipped, as in Pillow. A picture that already is image_size x image_size counts as cropped
        and is only normalised, as in R3M and MCR. Three mistakes cannot be detected: BGR instead of
        RGB, height and width swapped, and three grey frames instead of three colours.
        """
        if isinstance(images, list | tuple):
            if not images:
                raise UserError("there are no images in this list: pass at least one")
            return _stack([self(image, device) for image in images])
        pixels = _channels_first(images)
        if pixels.dtype == torch.uint8 and pixels.device.type == "cpu":
            _warn_if_black(int(pixels.max()))
        pixels = _in_unit_range(pixels.to(device))
        leading = pixels.shape[:-3]
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        pixels = self._fit(pixels, InterpolationMode(self.interpolation))
        pixels = transforms.normalize(pixels, list(self.mean), list(self.std))
        return pixels.reshape(*leading, *pixels.shape[-3:])

    def fit_masks(self, masks: Tensor) -> Tensor:
        """Resize and crop masks, bool [N, H, W], as their pictures are; return bool [N, S, S].

        Each pixel takes the value of the nearest one.
        """
        return self._fit(masks[:, None].float(), InterpolationMode.NEAREST_EXACT)[:, 0].bool()

    def _fit(self, pixels: Tensor, mode: InterpolationMode) -> Tensor:
        """Resize and crop [N, C, H, W] to [N, C, S, S]."""
        if pixels.shape[-2:] == (self.image_size, self.image_size):
            return pixels
        short, long = sorted(pixels.shape[-2:])
        if long > _MOST_ELONGATED * short:
            raise UserError(
                f"images are {long} pixels long and {short} wide: resizing the shorter side to "
                f"{self.resize} pixels would make them {long * self.resize // short:,} long; crop "
                "them first"
            )
        pixels = transforms.resize(pixels, [self.resize], mode, antialias=True)
        if mode == InterpolationMode.BICUBIC:
            pixels = pixels.clamp(0, 1)
        return transforms.center_crop(pixels, [self.image_size])


def _stack(pictures: list[Tensor]) -> Tensor:
    shapes = {tuple(picture.shape) for picture in pictures}
    if len(shapes) > 1:
        raise UserError(
            f"the list mixes pictures and batches ({', '.join(map(str, sorted(shapes)))} after "
            "preprocessing): pass one picture per element"
        )
    return torch.stack(pictures)


def _channels_first(images: Any) -> Tensor:
    """Return the pictures as a tensor [..., 3, H, W] with unchanged values."""
    if isinstance(images, PIL.Image.Image):
        if images.mode.startswith(("I", "F")):
            raise UserError(
                f"the picture has the mode {images.mode!r} (depth?), not 8-bit colour: convert it "
                "first"
            )
        images = np.array(images.convert("RGB"))
    is_numpy = isinstance(images, np.ndarray)
    if is_numpy and images.dtype.kind in "biuf":
        images = torch.from_numpy(np.array(images))  # a copy, because strides may be negative
    if not isinstance(images, Tensor):
        kind = f"{images.dtype} array" if is_numpy else type(images).__name__
        raise UserError(
            f"images are of the type {kind}: pass a PIL image, a NumPy array or torch tensor of "
            "numbers, or a list of those"
        )
    shape = tuple(images.shape)
    if len(shape) < 3 or 3 not in (shape[-3], shape[-1]):
        raise UserError(f"images have the shape {shape}: {_shape_advice(shape)}")
    if 0 in shape:
        raise UserError(f"images have the shape {shape}: there is no picture in it")
    if shape[-1] == shape[-3]:
        raise UserError(
            f"images have the shape {shape}: both the last and the third last could be the three "
            "colours; pass pictures more than 3 pixels wide and high"
        )
    return images.movedim(-1, -3) if shape[-1] == 3 else images


def _shape_advice(shape: tuple[int, ...]) -> str:
    if len(shape) == 2 or 1 in (shape[-1], shape[-3]):
        return "a grey or depth picture has one channel; repeat it three times if that is meant"
    if 4 in (shape[-1], shape[-3]):
        return "four channels; drop alpha or depth and pass RGB alone"
    for channels in (shape[-3], shape[-1]):
        if channels in (6, 9, 12):
            return (
                f"{channels} channels; frames stacked as channels? give each its own place, "
                f"[..., {channels // 3}, 3, H, W]"
            )
    if len(shape) >= 4 and shape[-4] == 3:
        return "[..., 3, T, H, W]? put time before the colours, [..., T, 3, H, W]"
    return "expected [..., 3, H, W] or [..., H, W, 3]"


def _in_unit_range(images: Tensor) -> Tensor:
    """Return uint8, or float in [0, 1], as float32 in [0, 1]; raise UserError for the rest."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        is_depth = "; looks like depth or 16-bit colour" if kind in ("uint16", "int16") else ""
        raise UserError(f"images are {kind}{is_depth}: pass uint8 in 0..255 or float in [0, 1]")
    images = images.float()
    # one transfer from the device, which also finds NaN and infinity
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("images hold NaN or infinity: look for a division by zero before")
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise UserError(
            f"images span [{low:.3g}, {high:.3g}], not [0, 1]: {_range_advice(low, high)}"
        )
    if 0 < high < _DARKEST and _is_between_levels(images):
        raise UserError(
            f"images span [{low:.3g}, {high:.3g}], below one of 255 levels: looks divided by 255 "
            "twice; divide once, or pass uint8, also if they really are that dark"
        )
    _warn_if_black(high * 255)
    return images


def _warn_if_black(brightest: float) -> None:
    """Warn if all images are black. They may be right (padding), so this is not an error.

    brightest: the highest of 255 levels; floats in [0, 1] that were cast to uint8 do not exceed 1
    """
    if brightest < 1.5:
        warnings.warn(
            "all images of this call are black: a dead camera, padding, or floats in [0, 1] that "
            "were cast to uint8 and must be multiplied by 255 before",
            stacklevel=2,
        )


def _is_between_levels(images: Tensor) -> bool:
    """Whether a value lies well between two of the 255 levels, which no 8-bit camera returns."""
    levels = 255 * images.detach()
    return bool((levels - levels.round()).abs().max() > 0.02)


def _range_advice(low: float, high: float) -> str:
    if low >= -0.2 and high <= 1.2:
        return "resampling overshoots a little; pass images.clip(0, 1)"
    if high > 4 and low >= -_RANGE_TOLERANCE:
        return "looks like 0..255 floats; divide by 255 or pass uint8"
    if low < 0 and high <= 1 + _RANGE_TOLERANCE and low >= -1 - _RANGE_TOLERANCE:
        return (
            "looks scaled to [-1, 1] or normalised already; pass raw images, the encoder "
            "normalises them itself"
        )
    if low < 0 and max(-low, high) < 4:
        return "looks ImageNet-normalised already; pass raw images, the encoder normalises itself"
    return "pass uint8 in 0..255 or float in [0, 1]"
