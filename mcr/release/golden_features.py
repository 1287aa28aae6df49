"""Golden features: an encoder's features of the golden pictures, summarised in a few numbers.

An export stores them in its config.json. `release.verify` compares them with what the encoder
computes later, on another machine or with another version of torch.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from mcr.errors import UserError
from mcr.models.encoder import Encoder
from mcr.models.golden_pictures import golden_pictures

_NUM_PROJECTIONS = 8


def golden_features(encoder: Encoder) -> Tensor:
    """Return pooled features of the golden pictures, float32 [4, D] on the CPU."""
    with torch.inference_mode():
        return encoder(list(golden_pictures().values())).float().cpu()


def golden_record(features: Tensor) -> dict[str, Any]:
    """Return what an export stores of `golden_features`: the norm and 8 projections per picture.

    Projection j is sum_i f_i cos(pi j (i + 1/2) / D), a coefficient of the cosine transform. Each
    depends on every feature, so that these numbers show a change of any one.
    """
    width = features.shape[1]
    positions = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    frequencies = torch.arange(_NUM_PROJECTIONS, dtype=torch.float64)
    basis = torch.cos(math.pi * frequencies[:, None] * positions).float()
    return {
        "pictures": _pictures_sha256(),
        "features": {
            name: {
                "norm": _rounded(row.norm()),
                "projections": [_rounded(value) for value in basis @ row],
            }
            for name, row in zip(golden_pictures(), features, strict=True)
        },
    }


def golden_deviation(record: dict[str, Any], features: Tensor) -> float:
    """Return the largest difference between stored and computed numbers, relative to the norm.

    It is about 1e-6 between machines.
    Raises UserError if the record is damaged, or if it is of other pictures.
    """
    now = golden_record(features)
    try:
        if record["pictures"] != now["pictures"]:
            raise UserError(
                "the golden features are of other pictures than those of this version of mcr"
            )
        deviations = [
            abs(then - value) / stored["norm"]
            for name, stored in now["features"].items()
            for then, value in zip(
                _numbers(record["features"][name]), _numbers(stored), strict=True
            )
        ]
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the golden features are damaged ({error!r})") from error
    return math.inf if any(map(math.isnan, deviations)) else max(deviations)


def _numbers(picture: dict[str, Any]) -> list[float]:
    return [picture["norm"], *picture["projections"]]


def _rounded(value: Tensor) -> float:
    return float(f"{float(value):.6g}")


def _pictures_sha256() -> str:
    """Return the SHA-256 of all pixels of the golden pictures."""
    digest = hashlib.sha256()
    for picture in golden_pictures().values():
        digest.update(picture.tobytes())
    return digest.hexdigest()
