"""Manipulation centricity: does an encoder look at what is being manipulated?

As MCR's paper (arXiv 2410.22325) defines it: Grad-CAM of the encoder, binarised, and its Jaccard
index |A n B| / |A u B| with the mask of end effector and task objects, averaged over frames. There
the masks are SAM 2's; in simulation they are rendered, and exact. The paper's threshold is not
documented: `sweep` gives all of them for the price of one Grad-CAM. The number alone says little;
`baselines` says what maps of the same size get that never looked. Called by `mcr centricity`.

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

THRESHOLD = 0.5  # of maps in [0, 1]
THRESHOLDS = tuple(np.arange(1, 20) / 20)

_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Saliency:
    """Where one encoder looks in N frames.

    inputs: uint8 [N, S, S, 3], what enters the network; maps: float32 [N, S, S] in [0, 1];
    masks: bool [N, S, S], none of them empty; num_unseen: frames that were left out because the
    crop shows nothing of what is manipulated
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
    """Jaccard index of each frame, float64 [N]; fewer where the crop shows nothing of the mask.

    images: uint8 [N, H, W, 3]; masks: bool [N, H, W], or lists of frames that differ in size
    """
    names = [f"frame {number}" for number in range(len(images))]
    looks = find_saliency(encoder, MaskedPictures("images", names, list(images), list(masks)))
    return sweep(looks, [threshold])[:, 0]


def find_saliency(encoder: Encoder, frames: MaskedPictures) -> Saliency:
    """Grad-CAM of each frame's largest output, and masks resized and cropped as pictures are.

    Raises UserError if the crop shows nothing of what is manipulated in any frame.
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
    """|A n B| / |A u B| of bool [N, H, W] each, float64 [N]; 0 where both are empty."""
    both = (ones & others).sum(axis=(1, 2))
    either = (ones | others).sum(axis=(1, 2))
    return both / either.clip(1)


def sweep(looks: Saliency, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """Jaccard index per frame and threshold, float64 [N, number of thresholds].

    A pixel is looked at if the map reaches the threshold there.
    """
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise UserError(f"threshold {threshold} must lie above 0 and be at most 1")
    return np.stack([jaccard(looks.maps >= t, looks.masks) for t in thresholds], axis=1)


def baselines(looks: Saliency, threshold: float = THRESHOLD) -> dict[str, np.ndarray]:
    """What maps get that did not look, float64 [N] each.

    whole:  everything is looked at
    centre: a disc in the middle, as large as the encoder's own binarised map
    random: as many pixels at random (a m / P of them hit a mask of m of P pixels)
    """
    areas = (looks.maps >= threshold).sum(axis=(1, 2))
    sizes = looks.masks.sum(axis=(1, 2))
    hit = areas * sizes / looks.maps[0].size
    return {
        "whole": jaccard(np.ones_like(looks.masks), looks.masks),
        "centre": jaccard(_discs(areas, looks.maps.shape[1]), looks.masks),
        "random": hit / (areas + sizes - hit),
    }


def _discs(areas: np.ndarray, side: int) -> np.ndarray:
    """bool [N, side, side]: the `areas[i]` pixels that are nearest to the middle."""
    places = np.arange(side) - (side - 1) / 2
    order = np.argsort((places[:, None] ** 2 + places**2).ravel(), kind="stable")
    rank = np.empty(side**2, int)
    rank[order] = np.arange(side**2)
    return rank.reshape(side, side) < areas[:, None, None]
