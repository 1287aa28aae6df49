"""Encoder: a pretrained network that takes raw images, applies its preprocessing and stays frozen.

It is torchvision's network, with the same tensors and layer names, and `models.loading` builds it.
`training` does not use it, but trains the bare networks of `models.backbones`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import ResNet, VisionTransformer

from mcr.errors import UserError, nearest, require_choice
from mcr.models.backbones import contexts_of_passes
from mcr.models.preprocessing import Preprocessing

OUTPUTS = ("pooled", "spatial", "tokens")


class Encoder(nn.Module):
    """What all encoders share. Subclasses also inherit from torchvision's network, or hold timm's.

    backbone:      a name of `BACKBONES`, or "timm:NAME"
    embed_dim:     the width D of its features
    preprocessing: how it prepares pictures
    feature_norm:  what normalises its features: None, "layer_norm" or "statistics"
    provenance:    how it was trained, as far as its file says; see `models.layouts.Weights`
    is_untrained:  whether its weights are random. The layers of such a network that learn have live
                   batch statistics in training mode: those of random weights, mean 0 and variance
                   1, normalise nothing.
    """

    backbone: str
    embed_dim: int
    preprocessing: Preprocessing
    feature_norm: str | None = None
    provenance: dict[str, Any] = {}
    is_untrained = False
    _mode = False  # what `train` was last asked for
    _learning: frozenset[str] = frozenset()  # names of the parameters that `unfreeze` was given
    _grad_checkpointing = False

    def forward(self, images: Any) -> Tensor:
        """Return pooled features, float [..., D], of raw images; see `Preprocessing.__call__`.

        The leading dimensions are those of the images; a single picture gives [D].
        """
        return self.features(images)

    def features(self, images: Any, output: str = "pooled") -> Tensor:
        """Return features of raw images.

        output: "pooled"  [..., D]         the mean over the picture; a ViT's class token
                "spatial" [..., D, h, w]   the last feature map
                "tokens"  [..., h * w, D]  that map, row by row, without class or register tokens
        The last layer of VIP comes after pooling: its maps have 2048 channels, and D is 1024.
        Raises UserError if the images are not raw images, or if frozen parameters were set to
        require gradients by other means than `unfreeze`.
        """
        self._require_frozen()
        # Upstream: the network is bare, and the example omits the normalisation that training used.
        pixels = self.preprocess(images)
        leading = pixels.shape[:-3]
        features = self.encode(pixels.reshape(-1, *pixels.shape[-3:]), output)
        return features.reshape(*leading, *features.shape[1:])

    def encode(self, pixels: Tensor, output: str = "pooled") -> Tensor:
        """Like `features`, but of preprocessed pixels [B, 3, S, S] and without checks."""
        require_choice("output", output, OUTPUTS)
        pixels = pixels.to(next(self.parameters()).dtype)
        if output == "pooled":
            return self._normalise(self._pooled(pixels), dim=-1)
        features = self._normalise(self._spatial(pixels), dim=-3)
        return rearrange(features, "b d h w -> b (h w) d") if output == "tokens" else features

    def preprocess(self, images: Any) -> Tensor:
        """Return what enters the network, float32 [..., 3, S, S], on the encoder's device."""
        return self.preprocessing(images, next(self.parameters()).device)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing under timm's names."""
        return self.preprocessing.pretrained_cfg(self.backbone)

    @property
    def stages(self) -> tuple[str, ...]:
        """Its layers from output to input: `unfreeze(encoder.stages[:n])` unfreezes the last n."""
        raise NotImplementedError

    @property
    def grad_cam_layer(self) -> nn.Module:
        """The layer whose output Grad-CAM uses: a map [B, C, h, w], or a ViT's tokens [B, N, D]."""
        raise NotImplementedError

    # ----------------------------------------------------------------------- freezing

    def unfreeze(self, layers: str | Iterable[str]) -> None:
        """Let these layers learn, in addition to those that already do.

        Batch statistics stay fixed, except in an untrained network. Under DistributedDataParallel,
        unfreeze before wrapping, or wrap again.

        layers: names ("layer4", "layer4.1.conv2", "encoder.layers"), or part of `stages`
        Raises UserError, and changes nothing, if a layer has no parameters.
        """
        parameters = dict(self.named_parameters())
        chosen: set[str] = set()
        for layer in [layers] if isinstance(layers, str) else layers:
            names = {name for name in parameters if name == layer or name.startswith(f"{layer}.")}
            if not names:
                paths = [name.split(".") for name in parameters]
                known = {".".join(path[:depth]) for path in paths for depth in (1, 2)}
                raise UserError(
                    f"trainable={layer!r} has no parameters in this {self.backbone}"
                    f"{nearest(layer, known)}"
                )
            chosen |= names
        for name in chosen:
            parameters[name].requires_grad_(True)
        self._learning |= chosen
        self.train(self._mode)

    def freeze(self) -> None:
        """Let nothing learn, and delete gradients, so that optimisers skip the parameters."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self._learning = frozenset()
        self.train(self._mode)

    def requires_grad_(self, requires_grad: bool = True) -> Encoder:
        """Unfreeze all layers; or freeze all, with `requires_grad_(False)`."""
        self.freeze()
        if requires_grad:
            self.unfreeze([name for name, _ in self.named_parameters()])
        return self

    def train(self, mode: bool = True) -> Encoder:
        """Stay in eval mode, so that `policy.train()` changes no batch statistics.

        In an untrained network, batch normalisation that learns follows `mode`.
        """
        self._mode = mode
        super().train(False)
        for name, layer in self.named_modules() if mode and self.is_untrained else ():
            if isinstance(layer, nn.BatchNorm2d) and f"{name}.weight" in self._learning:
                layer.train()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, stage by stage, instead of keeping them."""
        self._grad_checkpointing = enable

    def _require_frozen(self) -> None:
        """Raise UserError if e.g. `policy.requires_grad_(True)` has unfrozen parameters."""
        thawed = [
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and name not in self._learning
        ]
        if thawed:
            raise UserError(
                f"{len(thawed)} frozen parameters of the encoder were set to learn from outside "
                f"({shorten(thawed)}): to train them, call encoder.unfreeze(layers) or "
                "encoder.requires_grad_(); to keep them frozen, call encoder.freeze()"
            )

    def _run(self, layer: nn.Module, features: Tensor) -> Tensor:
        if self._grad_checkpointing and torch.is_grad_enabled():
            passes = partial(contexts_of_passes, layer)
            return checkpoint(layer, features, use_reentrant=False, context_fn=passes)
        return layer(features)

    # ----------------------------------------------------------------------- feature norms

    def set_feature_norm(self, norm: str | tuple[Tensor, Tensor]) -> None:
        """Normalise features by "layer_norm" or (mean, std), float [D] each; see `load_model`."""
        if isinstance(norm, str):
            self.feature_norm = require_choice("feature_norm", norm, ("layer_norm",))
            return
        mean, std = (torch.as_tensor(each).detach().clone().float() for each in norm)
        expected = (self.embed_dim,)
        if tuple(mean.shape) != expected or tuple(std.shape) != expected:
            raise UserError(
                f"feature_norm has the shapes {tuple(mean.shape)} and {tuple(std.shape)}: give the "
                f"mean and the standard deviation of features over a data set, {expected} each"
            )
        if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
            raise UserError("feature_norm must be finite, and its standard deviation not negative")
        # A unit that is constant in the data is only shifted: dividing would make it explode later.
        std = torch.where(std > 1e-6 * std.max(), std, 1.0)
        self.feature_norm = "statistics"
        self.register_buffer("feature_mean", mean)
        self.register_buffer("feature_std", std)

    def _normalise(self, features: Tensor, dim: int) -> Tensor:
        """Apply `feature_norm` over the axis `dim` of features."""
        if self.feature_norm == "layer_norm":
            features = features.movedim(dim, -1)
            return F.layer_norm(features, features.shape[-1:]).movedim(-1, dim)
        if self.feature_norm == "statistics":
            shape = [self.embed_dim, 1, 1] if dim == -3 else [self.embed_dim]
            mean, std = (self.get_buffer(f"feature_{kind}").view(shape) for kind in ("mean", "std"))
            return ((features.float() - mean.float()) / std.float()).to(features.dtype)
        return features

    # ----------------------------------------------------------------------- subclasses implement

    def _pooled(self, pixels: Tensor) -> Tensor:
        """Pooled features [B, D] of normalised pixels [B, 3, S, S]."""
        raise NotImplementedError

    def _spatial(self, pixels: Tensor) -> Tensor:
        """The last feature map [B, D, h, w] of normalised pixels [B, 3, S, S]."""
        raise NotImplementedError


class ResNetEncoder(Encoder, ResNet):
    """A torchvision ResNet; `fc` is an Identity, except in VIP, where it is a Linear."""

    layer4: nn.Sequential

    @property
    def stages(self) -> tuple[str, ...]:
        head = ("fc",) if isinstance(self.fc, nn.Linear) else ()
        return (*head, "layer4", "layer3", "layer2", "layer1", "bn1", "conv1")

    @property
    def grad_cam_layer(self) -> nn.Module:
        return self.layer4

    def _pooled(self, pixels: Tensor) -> Tensor:
        pooled = self.get_submodule("avgpool")(self._spatial(pixels))
        return self.get_submodule("fc")(pooled.flatten(1))

    def _spatial(self, pixels: Tensor) -> Tensor:
        for name in ("conv1", "bn1", "relu", "maxpool"):
            pixels = self.get_submodule(name)(pixels)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            pixels = self._run(self.get_submodule(name), pixels)
        return pixels


class VisionTransformerEncoder(Encoder, VisionTransformer):
    """A torchvision VisionTransformer whose `heads` is an Identity.

    `class_token` is [1, 1 + R, D] if the network has R registers.
    """

    conv_proj: nn.Module
    class_token: Tensor
    encoder: Any
    patch_size: int

    @property
    def stages(self) -> tuple[str, ...]:
        blocks = [f"encoder.layers.{name}" for name, _ in self.encoder.layers.named_children()]
        return (
            "encoder.ln",
            *reversed(blocks),
            "encoder.pos_embedding",
            "class_token",
            "conv_proj",
        )

    @property
    def grad_cam_layer(self) -> nn.Module:
        return self.encoder.layers[-1].ln_1  # after it only the class token reaches the output

    def _pooled(self, pixels: Tensor) -> Tensor:
        return self._tokens(pixels)[:, 0]

    def _spatial(self, pixels: Tensor) -> Tensor:
        patches = self._tokens(pixels)[:, self.class_token.shape[1] :]
        height = pixels.shape[-2] // self.patch_size
        return rearrange(patches, "b (h w) d -> b d h w", h=height)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Tokens [B, 1 + R + h * w, D] of normalised pixels: class token, registers, patches."""
        patches = rearrange(self.conv_proj(pixels), "b d h w -> b (h w) d")
        class_token = self.class_token.expand(len(patches), -1, -1)
        tokens = torch.cat([class_token, patches], dim=1)
        if not self._grad_checkpointing:
            return self.encoder(tokens)
        tokens = tokens + self.encoder.pos_embedding  # this is what self.encoder does
        for block in self.encoder.layers:
            tokens = self._run(block, tokens)
        return self.encoder.ln(tokens)


def shorten(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
