"""Manipulation centricity: does an encoder look at what is being manipulated?

MCR's paper (arXiv 2410.22325) defines it as the Jaccard index |A n B| / |A u B|, averaged over
frames, of the encoder's binarised Grad-CAM with a mask of the end effector and the task's objects.
The paper's masks come from SAM 2; in simulation they are rendered and exact. The paper does not
state its threshold, so `sweep` computes the index for many thresholds from one Grad-CAM. The index
alone says little: `baselines` gives those of maps of the same size that do not depend on the
picture. Called by `centricity_report`.

    N frames   S pixels per side of what enters the network, where maps and masks are compared
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcr.errors import UserError
from mcr.evaluation.masked_pictures import MaskedPictures
from mcr.models.encoder import Encoder
from mcr.models.grad_cam import grad_cam

THRESHOLD = 0.5  # for maps in [0, 1]
THRESHOLDS = tuple(np.arange(1, 20) / 20)

_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Saliency:
    """Grad-CAM of one encoder on N frames, and the masks to compare it with.

    inputs:     uint8 [N, S, S, 3], the pictures that enter the network
    maps:       float32 [N, S, S] in [0, 1]
    masks:      bool [N, S, S], none of them empty
    num_unseen: number of frames that were left out because their masks lie outside of the crop
    """

    inputs: np.ndarray
    maps: np.ndarray
    masks: np.ndarray
    num_unseen: int


def manipulation_centricity(
    encoder: Encoder,
    images: Sequence[np.ndarray] | np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray,
    threshold: float = THRESHOLD,
) -> np.ndarray:
    """The Jaccard index of each frame, float64 [N].

    images: uint8 [N, H, W, 3], or a list of pictures of different sizes
    masks:  bool [N, H, W], or a list of them
    Frames whose masks lie outside of the crop are left out.
    """
    names = [f"frame {number}" for number in range(len(images))]
    saliency = find_saliency(encoder, MaskedPictures("images", names, list(images), list(masks)))
    return sweep(saliency, [threshold])[:, 0]


def find_saliency(encoder: Encoder, frames: MaskedPictures) -> Saliency:
    """Compute Grad-CAM of each frame's largest output; resize and crop masks as the pictures.

    Raises UserError if the masks of all frames lie outside of the crop.
    """
    inputs, maps = [], []
    for begin in range(0, len(frames.images), _IMAGES_AT_ONCE):
        some = slice(begin, begin + _IMAGES_AT_ONCE)
        pixels = encoder.preprocess(frames.images[some])
        maps.append(grad_cam(encoder, pixels).cpu().numpy())
        inputs.append(_colours(encoder, pixels))
    fit = encoder.preprocessing.fit_masks
    masks = np.concatenate([fit(torch.from_numpy(mask)[None]).numpy() for mask in frames.masks])
    seen = np.array([mask.any() for mask in masks])
    if not seen.any():
        raise UserError(
            f"{frames.task}: in all {len(seen)} frames the masks lie outside of the central crop "
            "that enters the network: crop pictures and masks yourself before"
        )
    return Saliency(
        np.concatenate(inputs)[seen], np.concatenate(maps)[seen], masks[seen], int((~seen).sum())
    )


def _colours(encoder: Encoder, pixels: Tensor) -> np.ndarray:
    """Normalised [N, 3, S, S] -> uint8 [N, S, S, 3]."""
    mean, std = (torch.tensor(v) for v in (encoder.preprocessing.mean, encoder.preprocessing.std))
    colours = pixels.float().cpu().movedim(1, -1) * std + mean
    return (255 * colours.clamp(0, 1)).round().byte().numpy()


# --------------------------------------------------------------------------- numbers


def jaccard(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """|A n B| / |A u B| of two bool [N, H, W], float64 [N]; 0 where both are empty."""
    both = (ones & others).sum(axis=(1, 2))
    either = (ones | others).sum(axis=(1, 2))
    return both / either.clip(1)


def sweep(saliency: Saliency, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """The Jaccard index of each frame and threshold, float64 [N, number of thresholds].

    A pixel of a map counts if it reaches the threshold.
    """
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise UserError(f"threshold {threshold} must lie above 0 and be at most 1")
    return np.stack([jaccard(saliency.maps >= t, saliency.masks) for t in thresholds], axis=1)


def baselines(saliency: Saliency, threshold: float = THRESHOLD) -> dict[str, np.ndarray]:
    """The Jaccard indices of maps that do not depend on the picture, float64 [N] each.

    whole:  the whole picture
    centre: a disc in the middle, as large as the encoder's own binarised map
    random: the same number a of random pixels (of P pixels, a m / P hit a mask of m pixels)
    """
    areas = (saliency.maps >= threshold).sum(axis=(1, 2))
    sizes = saliency.masks.sum(axis=(1, 2))
    hit = areas * sizes / saliency.maps[0].size
    return {
        "whole": jaccard(np.ones_like(saliency.masks), saliency.masks),
        "centre": jaccard(_discs(areas, saliency.maps.shape[1]), saliency.masks),
        "random": hit / (areas + sizes - hit),
    }


def _discs(areas: np.ndarray, side: int) -> np.ndarray:
    """Discs in the middle, bool [N, side, side]; disc i has `areas[i]` pixels."""
    places = np.arange(side) - (side - 1) / 2
    order = np.argsort((places[:, None] ** 2 + places**2).ravel(), kind="stable")
    rank = np.empty(side**2, int)
    rank[order] = np.arange(side**2)
    return rank.reshape(side, side) < areas[:, None, None]
