"""Untrained encoders: the row that every comparison needs.

Random weights in the form of a training checkpoint, so that whatever takes an encoder takes these
too, by path and with a hash. `load_model` never makes one: an encoder that is random without
anybody having said so cannot come out of it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mcr.models.backbones import build_backbone
from mcr.models.layouts import CHECKPOINT_FORMAT
from mcr.models.loading import load_model
from mcr.models.preprocessing import Preprocessing


def write_untrained(
    path: str | Path, backbone: str = "resnet18", image_size: int = 224, seed: int = 0
) -> Path:
    """Write a checkpoint of the backbone's random initialisation.

    image_size: pixels that enter the network, after ImageNet's normalisation.
    Raises UserError for an unknown backbone. Leaves torch's random state as it was.
    """
    return _write(Path(path), backbone, Preprocessing.for_size(image_size), seed)


def write_untrained_like(path: str | Path, source: str | Path, seed: int = 0) -> Path:
    """Write one with the network and preprocessing of `source`, which `load_model` reads."""
    encoder = load_model(source)
    return _write(Path(path), encoder.backbone, encoder.preprocessing, seed)


def _write(path: Path, backbone: str, preprocessing: Preprocessing, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_backbone(backbone, preprocessing.image_size)
    content = {
        "format": CHECKPOINT_FORMAT,
        "encoder": network.state_dict(),
        "encoder_config": preprocessing.encoder_config(backbone),
    }
    torch.save(content, path)
    return path
