"""Trainable networks: the bare network that pre-training trains, and the weights it starts from.

A network is built with random weights. `loading.fill` then gives it those of `read_start`, which
may come from any source that `load_model` reads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torchvision.models import VisionTransformer

from mcr.errors import UserError
from mcr.models import catalogue
from mcr.models.backbones import BACKBONES, TIMM, build_backbone
from mcr.models.layouts import Weights
from mcr.models.preprocessing import Preprocessing
from mcr.models.sources import TORCHVISION, import_timm_encoder, read_source

IMAGENET = "imagenet"


def build_network(backbone: str, image_size: int) -> nn.Module:
    """Return the network of a name of `BACKBONES` or "timm:NAME", with random weights, to train.

    It maps normalised images, float [B, 3, image_size, image_size], to features, float
    [B, embed_dim], and has the attribute `embed_dim`.
    Raises UserError for an unknown name or a size of picture that the network does not take.
    """
    if backbone.startswith(TIMM):
        return import_timm_encoder().construct_trainable(backbone, image_size)
    return build_backbone(backbone, image_size)


def require_network(backbone: str, image_size: int) -> None:
    """Raise UserError for an unknown network, or a ViT whose patches do not divide the size.

    Nothing is computed, so that this costs little. Whether a network of timm takes the size is
    found by `build_network`.
    """
    if backbone.startswith(TIMM):
        import_timm_encoder().recorded_preprocessing(backbone)
        return
    with torch.device("meta"):
        build_backbone(backbone, image_size)


def usual_preprocessing(backbone: str, image_size: int | None) -> Preprocessing:
    """Return the preprocessing of a network that starts from random weights.

    image_size: None = 224, or what timm records

    It is ImageNet's mean and deviation, or, for a network of timm, what timm records.
    """
    if backbone.startswith(TIMM):
        recorded = import_timm_encoder().recorded_preprocessing(backbone)
        return recorded.resized(image_size or recorded.image_size)
    return Preprocessing.for_size(image_size or 224)


def read_start(source: str, backbone: str | None, image_size: int) -> Weights:
    """Read weights to start from; their preprocessing is for pictures of `image_size` pixels.

    source:   anything that `load_model` reads, or IMAGENET, for the usual ImageNet weights of the
              network: torchvision's, or timm's for "timm:NAME"
    backbone: the network that they must be for; None = whatever they are for, for IMAGENET a
              ResNet-50
    Raises UserError if they cannot be read, are for another network, or are a ViT's for pictures of
    another size: its positions belong to one size.
    """
    try:
        weights = read_source(_imagenet(backbone) if source == IMAGENET else source, backbone)
    except UserError as error:
        asked = f" (model.backbone={backbone})" if backbone else ""
        advice = "; --config-name scratch begins at random weights" if source == IMAGENET else ""
        raise UserError(f"model.init={source}{asked}: {error}{advice}") from error
    own = weights.preprocessing.image_size
    known = BACKBONES.get(weights.backbone)
    if known and known.family is VisionTransformer and own != image_size:
        raise UserError(
            f"model.init={source}: a {weights.backbone} for pictures of {own} pixels cannot start "
            f"with model.image_size={image_size}: set model.image_size={own}"
        )
    return replace(weights, preprocessing=weights.preprocessing.resized(image_size))


def _imagenet(backbone: str | None) -> str:
    """The name of a network's ImageNet weights, as `load_model` reads it."""
    if backbone is None or not backbone.startswith(TIMM):
        return f"{TORCHVISION}{backbone or 'resnet50'}"
    packaged = [model for model in catalogue.MODELS.values() if model.backbone == backbone]
    return next((model.name for model in packaged if catalogue.locate(model)), backbone)
