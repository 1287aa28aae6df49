"""What frozen features depend on: this decides whether features that were computed once still hold.

The folders of `cache` use it. Names and paths do not count. The same weights in another file give
the same key: see `models.fingerprint`.
"""

from __future__ import annotations

from typing import Any

from mcr.models.encoder import Encoder
from mcr.models.fingerprint import weights_fingerprint


def encoder_key(encoder: Encoder) -> dict[str, Any]:
    """The part of a key that an encoder decides: weights, network, preprocessing, normalisation."""
    return {
        "weights": weights_fingerprint(encoder),
        "encoder_config": encoder.preprocessing.encoder_config(encoder.backbone),
        "feature_norm": encoder.feature_norm,
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """What of `expected` is not so in `found`, for a message; "" if all of it is.

    For example "another encoder (1a2b3c4d5e6f..., not 0a1b2c3d4e5f...) and other data (...)".
    """
    names = {"weights": "another encoder", "data": "other data"}
    return " and ".join(
        f"{names.get(key, f'another {key}')} ({_short(found.get(key))}, not {_short(value)})"
        for key, value in expected.items()
        if found.get(key) != value
    )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
