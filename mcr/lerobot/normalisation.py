"""Raw pictures: what LeRobot's preprocessor did to pictures is taken back.

LeRobot's policies get pictures that were normalised as `normalization_mapping` says, by statistics
of the data set (or by ImageNet's, which its trainer puts in their place). Our encoders normalise
pictures themselves. So our policies ask LeRobot for IDENTITY. If a config asks for something else,
`RawPictures` computes its inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mcr.errors import UserError
from mcr.lerobot.compatibility import require_lerobot

require_lerobot()
from lerobot.configs.types import NormalizationMode  # noqa: E402

_EPSILON = 1e-8  # LeRobot's, in its NormalizerProcessorStep
# What each mode maps to -1 and 1.
_BOUNDS = {
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}

Statistics = Mapping[str, Mapping[str, Any]]  # feature -> name of a statistic -> [3, 1, 1]


class RawPictures(nn.Module):
    """Pictures that LeRobot normalised -> raw ones, to float32's precision (1e-6).

    mode:    LeRobot's for VISUAL
    cameras: the features that are pictures
    The statistics are part of the state dict, so a saved policy needs no data set.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, mode: NormalizationMode, cameras: Sequence[str], statistics: Statistics | None
    ):
        super().__init__()
        self.mode, self.cameras = mode, tuple(cameras)
        shape = (len(self.cameras), 3, 1, 1)
        self.register_buffer("scale", torch.full(shape, torch.nan))
        self.register_buffer("offset", torch.full(shape, torch.nan))
        if mode is NormalizationMode.IDENTITY:
            self.scale.fill_(1.0)
            self.offset.fill_(0.0)
        elif statistics:
            self.set_statistics(statistics)

    def set_statistics(self, statistics: Statistics) -> None:
        """Use these. Raises UserError if one that the mode needs is missing."""
        if self.mode is NormalizationMode.IDENTITY:
            return
        for row, camera in enumerate(self.cameras):
            scale, offset = _inverse(self.mode, camera, statistics)
            self.scale[row], self.offset[row] = scale, offset

    def forward(self, camera: str, pictures: Tensor) -> Tensor:
        """Float [..., 3, H, W] as LeRobot gives them -> float [..., 3, H, W] in [0, 1].

        Raises UserError if the statistics are not known.
        """
        if self.mode is NormalizationMode.IDENTITY:
            return pictures
        row = self.cameras.index(camera)
        if self.scale[row].isnan().any():
            raise UserError(
                f"normalization_mapping has VISUAL={self.mode.value}, but the policy was given no "
                f"statistics of {camera}: set VISUAL to IDENTITY, or give the policy dataset_stats"
            )
        return pictures * self.scale[row] + self.offset[row]


def _inverse(mode: NormalizationMode, camera: str, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Scale and offset, [3, 1, 1] each, that take the normalisation of a camera back."""
    if mode is NormalizationMode.MEAN_STD:
        mean, std = _statistics(mode, camera, statistics, "mean", "std")
        return std + _EPSILON, mean
    if mode not in _BOUNDS:
        raise UserError(
            f"normalization_mapping has VISUAL={mode.value}, which cannot be taken back: set it to "
            "IDENTITY"
        )
    low, high = _statistics(mode, camera, statistics, *_BOUNDS[mode])
    width = torch.where(high == low, _EPSILON, high - low)
    return width / 2, low + width / 2


def _statistics(
    mode: NormalizationMode, camera: str, statistics: Statistics, *names: str
) -> list[Tensor]:
    found = statistics.get(camera, {})
    if missing := [name for name in names if name not in found]:
        raise UserError(
            f"normalization_mapping has VISUAL={mode.value}, but the data set has no "
            f"{' and '.join(missing)} of {camera}: set VISUAL to IDENTITY"
        )
    values = [torch.as_tensor(found[name], dtype=torch.float32).flatten() for name in names]
    return [rearrange(value, "c -> c 1 1") for value in values]
