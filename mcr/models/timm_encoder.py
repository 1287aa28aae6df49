"""timm's networks as encoders: `timm:NAME`, with timm's weights or those of a file.

They are DINOv3 and hundreds of others, with the preprocessing that timm records for them. Needs
`pip install 'mcr[timm]'`, and is imported only when such a network is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from mcr.errors import UserError, nearest
from mcr.models import backbones, efficientnet
from mcr.models.backbones import TIMM
from mcr.models.blocks import last_map_of_timm
from mcr.models.encoder import Encoder
from mcr.models.layouts import Weights
from mcr.models.preprocessing import Preprocessing
from mcr.models.tensor_files import read_tensors


class TimmEncoder(Encoder):
    """An Encoder that holds a network of timm without its classifier.

    The pooled features are the classifier's input. "spatial" is the last feature map, which may
    have another width, and which not every network of timm has.
    """

    network: Any

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.embed_dim = _num_features(network)

    @property
    def stages(self) -> tuple[str, ...]:
        """Its layers from output to input; sequences of blocks are listed block by block."""
        names = [name for name, _ in self.network.named_parameters(recurse=False)]
        for name, child in self.network.named_children():
            if isinstance(child, nn.Sequential | nn.ModuleList):
                names += [f"{name}.{part}" for part, _ in child.named_children()]
            else:
                names.append(name)
        learning = {name for name, _ in self.network.named_parameters()}
        return tuple(
            f"network.{name}"
            for name in reversed(names)
            if name in learning or any(each.startswith(f"{name}.") for each in learning)
        )

    @property
    def grad_cam_layer(self) -> nn.Module:
        return last_map_of_timm(self.network)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable and self.is_untrained and _has_batch_norm(self.network):
            raise UserError(
                f"grad_checkpointing computes a {self.backbone} twice, and timm would count its "
                "batch statistics twice while it learns from random weights: leave it out"
            )
        self.network.set_grad_checkpointing(enable)

    def _pooled(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)

    def _spatial(self, pixels: Tensor) -> Tensor:
        maps = self.network.forward_intermediates(
            pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps[-1]


def _has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class FixedBatchNormAct2d(BatchNormAct2d):
    """`backbones.FixedBatchNorm2d` for timm's batch normalisation with an activation."""

    def train(self, mode: bool = True) -> FixedBatchNormAct2d:
        super().train(False)
        return self


def construct(backbone: str) -> nn.Module:
    """Return the network `timm:NAME` without classifier, with random weights, in eval mode.

    Raises UserError for an unknown name.
    """
    return timm.create_model(_architecture(backbone), num_classes=0).eval()


def freeze_batch_norm(network: nn.Module) -> None:
    """`backbones.freeze_batch_norm` for a network of timm."""
    backbones.freeze_batch_norm(network)
    for module in network.modules():
        if type(module) is BatchNormAct2d:
            module.__class__ = FixedBatchNormAct2d
            module.eval()


def construct_trainable(backbone: str, image_size: int) -> nn.Module:
    """Return the network `timm:NAME` without classifier, with random weights, to be trained.

    It maps normalised images, float [B, 3, image_size, image_size], to features [B, embed_dim], and
    has the attribute `embed_dim`. Batch normalisation is of the class BatchNorm2d throughout;
    activations that timm merges into it follow as hooks, and no tensor changes its name.
    Raises UserError for an unknown name, or if the network does not take pictures of this size.
    """
    network = timm.create_model(_architecture(backbone), num_classes=0)
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError) as error:  # what timm raises for another size
        own = recorded_preprocessing(backbone).image_size
        raise UserError(
            f"image_size={image_size} does not fit {backbone}, which is for {own} pixels "
            f"({' '.join(str(error).split())[:100]}): set model.image_size={own}"
        ) from error
    for module in network.modules():
        if type(module) is BatchNormAct2d:
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
            module.register_forward_hook(_activate)
    network.embed_dim = _num_features(network)  # type: ignore[assignment]
    return network.train()


def _activate(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return norm.act(norm.drop(output))


def _num_features(network: Any) -> int:
    return getattr(network, "head_hidden_size", None) or network.num_features


def read_pretrained(name: str) -> Weights:
    """Read timm's own weights of `timm:NAME[.TAG]` from its cache, or download them.

    Raises UserError for an unknown name, or if the weights cannot be loaded.
    """
    architecture, preprocessing = _architecture(name), recorded_preprocessing(name)
    if not timm.is_model_pretrained(architecture):
        raise UserError(
            f"{name}: timm has no weights for it; give a file: "
            f"mcr.load_model(FILE, backbone={name!r})"
        )
    try:
        # timm loads strictly only with the number of classes that the weights have.
        network = timm.create_model(architecture, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: timm could not load its weights: {reason}") from error
    return _weights(Path(name), name, network, preprocessing)


def read_file(path: Path, backbone: str) -> Weights:
    """Read a file for the network `timm:NAME`: timm's own, or one whose names timm translates.

    Raises UserError if the tensors do not fill the network.
    """
    architecture, preprocessing = _architecture(backbone), recorded_preprocessing(backbone)
    tensors = read_tensors(path)
    if efficientnet.MARK in tensors:
        tensors = _efficientnet(tensors, architecture, path)
    recorded = _recorded(backbone)
    names = recorded.classifier or ()
    names = (names,) if isinstance(names, str) else names
    has_classifier = any(f"{name}.weight" in tensors for name in names)
    classes = recorded.num_classes if has_classifier else 0
    try:
        network = timm.create_model(
            architecture,
            pretrained=True,
            num_classes=classes,
            pretrained_cfg_overlay={"state_dict": tensors, "num_classes": classes},
        )
    except (RuntimeError, KeyError, AttributeError) as error:  # what its translations raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the tensors do not fill a {backbone}: {reason}") from error
    return _weights(path, backbone, network, preprocessing)


def _efficientnet(tensors: dict[str, Tensor], architecture: str, path: Path) -> dict[str, Tensor]:
    with torch.device("meta"):
        network: Any = timm.create_model(architecture)
    if not architecture.startswith("tf_efficientnet"):
        raise UserError(f"{path}: its names are an EfficientNet's, not those of {architecture}")
    return efficientnet.to_timm(tensors, [len(stage) for stage in network.blocks])


def _weights(path: Path, backbone: str, network: Any, preprocessing: Preprocessing) -> Weights:
    network.reset_classifier(0)
    return Weights(path, "timm model", dict(network.state_dict()), backbone, preprocessing)


def recorded_preprocessing(backbone: str) -> Preprocessing:
    """Return the preprocessing that timm records. Raises UserError if it cannot be done here."""
    config = timm.data.resolve_data_config(pretrained_cfg=_recorded(backbone).to_dict())
    channels, height, width = config["input_size"]
    if channels != 3 or height != width or config["crop_mode"] != "center":
        raise UserError(
            f"{backbone} takes {channels} x {height} x {width} pixels, cropped by "
            f"{config['crop_mode']!r}: only square RGB pictures cropped at the centre are supported"
        )
    return Preprocessing(
        image_size=height,
        resize=int(height / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _recorded(name: str) -> Any:
    """timm's record of a network, or of the weights named after the dot."""
    try:
        return timm.models.get_pretrained_cfg(_architecture(name))
    except RuntimeError as error:
        raise UserError(f"{name}: {error}") from error


def _architecture(name: str) -> str:
    architecture = name.removeprefix(TIMM)
    if not timm.is_model(architecture):
        raise UserError(
            f"{name}: timm has no such network{nearest(architecture, timm.list_models())}"
        )
    return architecture
