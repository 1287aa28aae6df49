"""Loading: a name or a file -> a frozen Encoder, by `load_model`.

`models.sources` finds the weights, `models.layouts` reads them, `models.encoder` is the result.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer

from mcr.errors import UserError
from mcr.models.backbones import BACKBONES, TIMM, Network, construct, freeze_batch_norm
from mcr.models.encoder import Encoder, ResNetEncoder, VisionTransformerEncoder, shorten
from mcr.models.layouts import UNTRAINED, Weights
from mcr.models.sources import import_timm_encoder, read_source

logger = logging.getLogger(__name__)

_ENCODERS: dict[type[nn.Module], type[Encoder]] = {
    ResNet: ResNetEncoder,
    VisionTransformer: VisionTransformerEncoder,
}


def load_model(
    source: str | Path,
    device: torch.device | str | None = None,
    trainable: str | Iterable[str] = (),
    backbone: str | None = None,
    feature_norm: str | tuple[Tensor, Tensor] | None = None,
) -> Encoder:
    """Load an encoder: frozen, in eval mode, with its own preprocessing.

    source: a file (upstream's released weights or snapshot, R3M's, VIP's, MVP's, VC-1's, DINOv2's,
        torchvision's, a training checkpoint of ours), the folder of an export, or a name: one of
        `list_models()`, "torchvision:resnet50", "timm:NAME", "hf:org/name[/file][@revision]"
    device: where to put it; None = the CPU
    trainable: names of layers that will learn; see `Encoder.unfreeze`
    backbone: the network that the file is for, if its tensors cannot tell ("vit_s_16_h12"), or the
        network of timm that it is for ("timm:NAME")
    feature_norm: how to normalise features: "layer_norm", over the width and without parameters, or
        by (mean, std), float [D] each, of a data set's features, which become part of the encoder's
        state dict; None = not at all

    Every tensor of the network comes from the file; nothing in the file is executed. The number of
    tensors is logged at level INFO.
    Raises UserError if the source is not found, is damaged, or does not fill the network exactly.
    """
    encoder = build_encoder(read_source(source, backbone))
    encoder.unfreeze(trainable)
    if feature_norm is not None:
        encoder.set_feature_norm(feature_norm)
    return encoder if device is None else encoder.to(device)


def load_mcr(
    ckpt_path: str | Path = "./ckpts/mcr_resnet50.pth", device: torch.device | str | None = None
) -> nn.Module:
    """Upstream's loader: return the bare torchvision network in eval mode, not frozen.

    The network takes images that are already resized, cropped and normalised as for ImageNet; a
    warning says so. `load_model` returns one that prepares images itself.

    device: None = a GPU if there is one, as upstream
    """
    warnings.warn(
        "load_mcr returns the bare network: resize, crop and ImageNet-normalise images yourself, "
        "or use mcr.load_model, which takes raw images",
        stacklevel=2,
    )
    weights = read_source(ckpt_path)
    if weights.backbone not in BACKBONES:
        raise UserError(f"{ckpt_path}: a {weights.backbone} has no bare network: use load_model")
    network = fill(_construct(BACKBONES[weights.backbone].family, weights), weights).eval()
    return network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def build_encoder(weights: Weights) -> Encoder:
    """Return the frozen encoder on the CPU; it uses the tensors of `weights` without a copy.

    Its batch statistics are fixed for good, unless its weights are random.
    """
    encoder: Encoder
    if weights.backbone.startswith(TIMM):
        timm_encoder = import_timm_encoder()
        encoder = timm_encoder.TimmEncoder(fill(timm_encoder.construct(weights.backbone), weights))
        fix = timm_encoder.freeze_batch_norm
    else:
        family = BACKBONES[weights.backbone].family
        encoder = fill(_construct(_ENCODERS[family], weights), weights)
        fix = freeze_batch_norm
    encoder.provenance = weights.provenance
    encoder.is_untrained = bool(weights.provenance.get(UNTRAINED))
    if not encoder.is_untrained:
        fix(encoder)
    encoder.backbone = weights.backbone
    encoder.preprocessing = weights.preprocessing
    encoder.freeze()
    return encoder.eval()


def _construct(network_class: type[Network], weights: Weights) -> Network:
    """Construct the network on the meta device; `fill` gives it its tensors."""
    with torch.device("meta"):
        return construct(network_class, weights.backbone, weights.preprocessing.image_size)


def fill(network: Network, weights: Weights) -> Network:
    """Give the network the tensors of `weights`, without a copy, and return it.

    Raises UserError unless they are exactly the network's.
    """
    expected = network.state_dict()
    _require_same(weights, expected)
    network.load_state_dict(weights.tensors, strict=True, assign=True)
    logger.info(
        "%d/%d tensors loaded from %s (%s, %s)",
        len(weights.tensors),
        len(expected),
        weights.path,
        weights.layout,
        weights.backbone,
    )
    return network


def _require_same(weights: Weights, expected: dict[str, Tensor]) -> None:
    found = weights.tensors
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {_kind(found[name])}, not {_kind(tensor)}"
        for name, tensor in expected.items()
        if name in found and _kind(found[name]) != _kind(tensor)
    ]
    problems = [
        f"{len(names)} {what} ({shorten(names)})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", misshapen),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{weights.path}: the tensors of this {weights.layout} do not fill a "
            f"{weights.backbone}: {'; '.join(problems)}; nothing was loaded"
        )


def _kind(tensor: Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else 'integer'} {list(tensor.shape)}"
