"""Fingerprints of encoders: the same weights in another file, or under another name, give the same.

What was computed with an encoder is reused, or a run continued, by its fingerprint.
"""

from __future__ import annotations

import hashlib
import json

from mcr.models.encoder import Encoder


def weights_fingerprint(encoder: Encoder) -> str:
    """SHA-256 of all tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encoder_fingerprint(encoder: Encoder) -> str:
    """SHA-256 of weights, network and preprocessing."""
    described = encoder.preprocessing.encoder_config(encoder.backbone)
    config = json.dumps(described, sort_keys=True)
    return hashlib.sha256(f"{weights_fingerprint(encoder)} {config}".encode()).hexdigest()
