"""Untrained encoders: networks with random weights, the baseline of every comparison.

This is the only maker of them. `load_model` never returns one unless a file that was written here
is loaded, so no encoder is random by mistake.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mcr.models.backbones import TIMM, build_backbone
from mcr.models.encoder import Encoder
from mcr.models.layouts import CHECKPOINT_FORMAT, UNTRAINED, Weights
from mcr.models.loading import build_encoder, load_model
from mcr.models.preprocessing import Preprocessing
from mcr.models.sources import import_timm_encoder
from mcr.runs.atomic import atomic_path


def build_untrained(backbone: str, preprocessing: Preprocessing) -> Encoder:
    """Return a frozen encoder with random weights, drawn from torch's default generator.

    Layers that are unfrozen have live batch statistics in training mode.

    backbone: a name of `BACKBONES`, or "timm:NAME"
    Raises UserError for an unknown backbone or an image size that it cannot take.
    """
    return build_encoder(_random_weights(backbone, preprocessing))


def write_untrained(
    path: str | Path, backbone: str = "resnet18", image_size: int = 224, seed: int = 0
) -> Path:
    """Write a random initialisation in the form of a training checkpoint, and return its path.

    Whatever takes an encoder then takes this one, by its path. Torch's random state is unchanged.

    image_size: side of the pictures that enter the network, in pixels; they are normalised as for
        ImageNet
    Raises UserError for an unknown backbone or an image size that it cannot take.
    """
    return _write(Path(path), backbone, Preprocessing.for_size(image_size), seed)


def write_untrained_like(path: str | Path, source: str | Path, seed: int = 0) -> Path:
    """Write one with the network and the preprocessing of `source`, which `load_model` reads."""
    encoder = load_model(source)
    return _write(Path(path), encoder.backbone, encoder.preprocessing, seed)


def _write(path: Path, backbone: str, preprocessing: Preprocessing, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = _random_weights(backbone, preprocessing)
    content = {
        "format": CHECKPOINT_FORMAT,
        "encoder": weights.tensors,
        "encoder_config": preprocessing.encoder_config(backbone),
        UNTRAINED: True,
    }
    with atomic_path(path) as partial:
        torch.save(content, partial)
    return path


def _random_weights(backbone: str, preprocessing: Preprocessing) -> Weights:
    if backbone.startswith(TIMM):
        network = import_timm_encoder().construct(backbone)
    else:
        network = build_backbone(backbone, preprocessing.image_size)
    return Weights(
        Path("no file"), "random", network.state_dict(), backbone, preprocessing, {UNTRAINED: True}
    )
