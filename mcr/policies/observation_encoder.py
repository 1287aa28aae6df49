r"""Observation encoder: a robot's cameras and low-dimensional signals -> one vector for a policy.

    pictures -> encoder(s) -> pooling -> norm \
                                               +-> projection (2 layers) -> vector
              low-dimensional, standardised -> /

The encoders are those of `models.encoder`: they take raw pictures, and a frozen one stays frozen.
Features from a cache may replace pictures. `policy` puts a network behind it, and
`behaviour_cloning` trains both.

Shapes: B states, V cameras, D features, h w of a map, P low-dimensional signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from mcr.errors import UserError
from mcr.features.extraction import feature_shape
from mcr.models.backbones import NETWORK_NAME
from mcr.models.encoder import Encoder, ResNetEncoder
from mcr.models.loading import load_model
from mcr.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, MOST_PIXELS, Preprocessing
from mcr.models.trainable import usual_preprocessing
from mcr.models.untrained import build_untrained
from mcr.policies.network import FEATURE_NORMS, MOST_STD, Standardise
from mcr.policies.pooling import KEYPOINTS, SpatialSoftmax, TokenAttention
from mcr.runs.ranges import ANY_TEXT, check_fields, choice, optional, whole

POOLINGS = ("pooled", "spatial_softmax", "tokens")
NORMALISATIONS = ("own", "imagenet")


@dataclass
class ObservationConfig:
    """How observations become vectors.

    encoder:            what `load_model` takes; "" = torchvision's ImageNet weights
    pretrained_encoder: False = random weights, a baseline; `encoder` must then be ""
    rgb_model_name:     the network; "" = that of `encoder`, or resnet18
    image_size:         pixels that the network gets; 0 = as the encoder was trained; for random
                        weights 224, or what timm records
    normalisation:      of pixels: the encoder's "own", or "imagenet"
    freeze_encoder:     True = the encoder does not learn until `unfreeze` is called
    share_encoder:      True = one encoder for all cameras; False = one for each
    grad_checkpointing: save memory at the cost of time where the encoder learns
    crops:              number of random crops per picture in training, whose features are averaged;
                        0 = the centre crop
    pooling:            "pooled", the encoder's own features; "spatial_softmax", the positions of 32
                        learned keypoints; "tokens", a learned attention over the feature map
    feature_norm:       of features: "none", "layer_norm" (for each camera), "batch_norm" (then
                        clipped to 5 standard deviations)
    emb_dim:            width of the projection, a 2-layer MLP with LeakyReLU; 0 = no projection
    """

    encoder: Annotated[str, ANY_TEXT] = ""
    pretrained_encoder: bool = True
    rgb_model_name: Annotated[str, optional(NETWORK_NAME)] = ""
    image_size: Annotated[int, whole(0, MOST_PIXELS)] = 0
    normalisation: Annotated[str, choice(NORMALISATIONS)] = "own"
    freeze_encoder: bool = True
    share_encoder: bool = True
    grad_checkpointing: bool = False
    crops: Annotated[int, whole(0)] = 0
    pooling: Annotated[str, choice(POOLINGS)] = "pooled"
    feature_norm: Annotated[str, choice(FEATURE_NORMS)] = "none"
    emb_dim: Annotated[int, whole(0)] = 256

    def __post_init__(self) -> None:
        check_fields(self, "observations.")
        if self.encoder and not self.pretrained_encoder:
            raise UserError(
                f"pretrained_encoder=False means random weights: leave out encoder={self.encoder}, "
                "and say with rgb_model_name which network"
            )


class ObservationEncoder(nn.Module):
    """Pictures of the named cameras and P signals -> float [B, out_dim].

    cameras:       in the order of V
    low_dim:       P; 0 = no signals
    encoders:      one, or one per camera, instead of those that the config names
    feature_shape: of one camera's features in a cache, [D] or [D, h, w]
    out_dim:       width of the vector
    Raises UserError for an encoder that does not fit the config.
    """

    def __init__(
        self,
        config: ObservationConfig,
        cameras: Sequence[str],
        low_dim: int,
        encoders: Sequence[Encoder] = (),
    ):
        super().__init__()
        self.config, self.cameras = config, tuple(cameras)
        num_encoders = 1 if config.share_encoder else len(self.cameras)
        self.encoders = nn.ModuleList(encoders or [_load(config) for _ in range(num_encoders)])
        if not config.freeze_encoder:
            self.unfreeze()
        for encoder in self.all_encoders():
            encoder.set_grad_checkpointing(config.grad_checkpointing)
        if config.crops:
            _require_margin(self.encoder)
        self.feature_shape = feature_shape(self.encoder, _output(config))
        self.pool = _build_pool(config.pooling, self.feature_shape[0])
        width = 2 * KEYPOINTS if config.pooling == "spatial_softmax" else self.feature_shape[0]
        self.norm = _build_norm(config.feature_norm, len(self.cameras), width)
        inputs = len(self.cameras) * width + low_dim
        self.projection = _build_projection(inputs, config.emb_dim)
        self.out_dim = config.emb_dim or inputs
        self.low_dim = Standardise(low_dim)

    @property
    def encoder(self) -> Encoder:
        """The shared encoder, or that of the first camera."""
        return self.all_encoders()[0]

    def all_encoders(self) -> list[Encoder]:
        """The shared encoder, or one per camera."""
        return [encoder for encoder in self.encoders if isinstance(encoder, Encoder)]

    def forward(self, pictures: Mapping[str, Any], low_dim: Tensor | None = None) -> Tensor:
        """Raw pictures [B, 3, H, W] or [B, H, W, 3] by camera and signals [B, P] -> [B, out_dim].

        Raises UserError if a camera is missing or a picture is not raw.
        """
        crops = self.config.crops if self.training else 0
        pooled = [self.pool(self._encode(camera, pictures, crops)) for camera in self.cameras]
        means = [reduce(each, "(b n) d -> b d", "mean", n=max(1, crops)) for each in pooled]
        return self._finish(torch.stack(means, dim=1), low_dim)

    def from_features(self, features: Tensor, low_dim: Tensor | None = None) -> Tensor:
        """Features [B, V, D] or [B, V, D, h, w] of `features`, and signals [B, P] -> [B, out_dim].

        Raises UserError for features of another shape.
        """
        expected = (len(self.cameras), *self.feature_shape)
        if tuple(features.shape[1:]) != expected:
            raise UserError(
                f"features have the shape {list(features.shape)}, not [B, "
                f"{', '.join(map(str, expected))}]: another encoder, input size or set of cameras?"
            )
        pooled = self.pool(features.flatten(0, 1))
        return self._finish(rearrange(pooled, "(b v) d -> b v d", b=len(features)), low_dim)

    def features(self, pictures: Mapping[str, Any]) -> Tensor:
        """The features of the pictures' centre crops before pooling, as a cache holds them."""
        features = [self._encode(camera, pictures, crops=0) for camera in self.cameras]
        return torch.stack(features, dim=1)

    # ----------------------------------------------------------------------- what may learn

    def freeze(self) -> None:
        """Let no encoder learn. Pooling, norm and projection still do."""
        for encoder in self.all_encoders():
            encoder.freeze()

    def unfreeze(self, num_stages: int = 0) -> None:
        """Let the last stages of the encoders learn, see `Encoder.stages`. 0 = all stages."""
        for encoder in self.all_encoders():
            encoder.unfreeze(encoder.stages[: num_stages or None])

    # ----------------------------------------------------------------------- the parts of forward

    def _encode(self, camera: str, pictures: Mapping[str, Any], crops: int) -> Tensor:
        """Features of n random crops per picture, [B * n, ...]; of the centre crop if n is 0."""
        if camera not in pictures:
            raise UserError(f"no pictures of the camera {camera!r}, only of {', '.join(pictures)}")
        place = 0 if self.config.share_encoder else self.cameras.index(camera)
        encoder = self.all_encoders()[place]
        output = _output(self.config)
        if not self.config.crops:
            return encoder.features(pictures[camera], output)
        preprocessing = encoder.preprocessing
        square = replace(preprocessing, image_size=preprocessing.resize)
        pixels = square(pictures[camera], next(encoder.parameters()).device)
        if crops:
            pixels = random_crops(pixels, preprocessing.image_size, crops)
        else:
            pixels = transforms.center_crop(pixels, [preprocessing.image_size])
        return encoder.encode(pixels, output)

    def _finish(self, features: Tensor, low_dim: Tensor | None) -> Tensor:
        """Pooled features [B, V, D] and signals [B, P] -> [B, out_dim]."""
        num_signals = len(self.low_dim.mean)
        if low_dim is None:
            low_dim = features.new_zeros(len(features), 0)
        if low_dim.shape != (len(features), num_signals):
            raise UserError(
                f"low_dim has the shape {list(low_dim.shape)}, not [{len(features)}, {num_signals}]"
            )
        vectors = torch.cat([self.norm(features), self.low_dim(low_dim)], dim=1)
        return self.projection(vectors)


def random_crops(pixels: Tensor, size: int, count: int) -> Tensor:
    """Crops at independent random places: [B, 3, R, R] -> [B * count, 3, size, size]."""
    pixels = pixels.repeat_interleave(count, dim=0)
    margin = pixels.shape[-1] - size
    begins = torch.randint(margin + 1, (2, len(pixels), 1), device=pixels.device)
    rows, columns = begins + torch.arange(size, device=pixels.device)
    samples = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return pixels.movedim(1, -1)[samples, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


# --------------------------------------------------------------------------- building


def _load(config: ObservationConfig) -> Encoder:
    network = config.rgb_model_name or "resnet18"
    if not config.pretrained_encoder:
        return build_untrained(network, usual_preprocessing(network, config.image_size or None))
    encoder = load_model(config.encoder or f"torchvision:{network}")
    if config.rgb_model_name not in ("", encoder.backbone):
        raise UserError(
            f"{config.encoder} is a {encoder.backbone}: leave out rgb_model_name={network}"
        )
    encoder.preprocessing = _preprocessing(encoder, config)
    return encoder


def _preprocessing(encoder: Encoder, config: ObservationConfig) -> Preprocessing:
    own = encoder.preprocessing
    size = config.image_size or own.image_size
    if size != own.image_size and not isinstance(encoder, ResNetEncoder):
        raise UserError(
            f"image_size={size}: a {encoder.backbone} takes {own.image_size} pixels only; leave it "
            "out, pictures of any size are resized"
        )
    if size != own.image_size:
        own = replace(own, image_size=size, resize=round(size * own.resize / own.image_size))
    if config.normalisation == "imagenet":
        own = replace(own, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return own


def _require_margin(encoder: Encoder) -> None:
    preprocessing = encoder.preprocessing
    if preprocessing.resize == preprocessing.image_size:
        raise UserError(
            f"crops: this encoder crops nothing ({preprocessing.image_size} pixels of "
            f"{preprocessing.resize}), so there is no room for random crops; leave them out"
        )


def _output(config: ObservationConfig) -> str:
    """The encoder's output that pooling needs."""
    return "pooled" if config.pooling == "pooled" else "spatial"


def _build_pool(pooling: str, width: int) -> nn.Module:
    if pooling == "spatial_softmax":
        return SpatialSoftmax(width)
    return TokenAttention(width) if pooling == "tokens" else nn.Identity()


def _build_norm(kind: str, num_cameras: int, width: int) -> nn.Module:
    """[B, V, D] -> [B, V * D]."""
    if kind == "layer_norm":
        return nn.Sequential(nn.LayerNorm(width), nn.Flatten())
    if kind == "batch_norm":
        layers = (nn.Flatten(), nn.BatchNorm1d(num_cameras * width))
        return nn.Sequential(*layers, nn.Hardtanh(-MOST_STD, MOST_STD))
    return nn.Flatten()


def _build_projection(inputs: int, width: int) -> nn.Module:
    if not width:
        return nn.Identity()
    return nn.Sequential(nn.Linear(inputs, width), nn.LeakyReLU(), nn.Linear(width, width))
