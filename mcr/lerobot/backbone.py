"""The encoder in the place of a vision backbone of LeRobot, and what all our policies share.

LeRobot's policies build torchvision's ResNet and take it apart. Ours let them build a small one,
and put `Backbone` in its place. `EncoderPolicy` does what does not depend on the policy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mcr.errors import UserError
from mcr.features.extraction import feature_shape
from mcr.lerobot.normalisation import RawPictures, Statistics
from mcr.models.encoder import Encoder
from mcr.models.loading import load_model
from mcr.models.untrained import build_untrained

_STAND_IN = {"vision_backbone": "resnet18", "pretrained_backbone_weights": None}


class Backbone(nn.Module):
    """Raw pictures, or features of a cache -> feature maps.

    feature_shape: [D, h, w], the same for pictures of any size, because the encoder resizes them
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.feature_shape = feature_shape(encoder, "spatial")

    def forward(self, pictures: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1], or features [B, D, h, w] -> [B, D, h, w].

        Raises UserError for pictures that are not raw.
        """
        if pictures.shape[1] != 3:
            return self._require_features(pictures)
        return self.encoder.features(pictures, output="spatial")

    def _require_features(self, features: Tensor) -> Tensor:
        if tuple(features.shape[1:]) != self.feature_shape:
            raise UserError(
                f"the policy got {list(features.shape)}, neither pictures [B, 3, H, W] nor "
                f"features [B, {', '.join(map(str, self.feature_shape))}]"
            )
        return features


def build_encoder(config: Any, in_the_file: bool) -> Encoder:
    """The encoder of a config of ours, frozen or learning as the config says.

    in_the_file: True = only the network; the saved policy, which is loaded strictly, fills it
    """
    if in_the_file:
        if config.preprocessing is None:
            raise UserError("config.json describes no encoder: a policy of ours did not write it")
        encoder = build_untrained(config.network, config.preprocessing)
    else:
        encoder = load_model(config.vision_backbone)
    if not config.freeze_backbone:
        encoder.unfreeze(config.trainable_layers or encoder.stages)
    return encoder


@contextlib.contextmanager
def stand_in(config: Any) -> Iterator[None]:
    """Inside the block, the config names a small network of torchvision for LeRobot to build."""
    ours = {name: getattr(config, name) for name in _STAND_IN}
    try:
        for name, value in _STAND_IN.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in ours.items():
            setattr(config, name, value)


class EncoderPolicy(nn.Module):
    """What our policies share; each also inherits from a policy of LeRobot, behind this class.

    dataset_stats: statistics of the data set, which LeRobot's `make_policy` passes; they are needed
        if `normalization_mapping` asks for more than IDENTITY of pictures
    encoder_in_the_file: True = the encoder's weights will be loaded with the policy's

    Raises UserError for a config that does not fit, and for weights that `load_model` refuses.
    """

    config: Any
    raw_pictures: RawPictures

    def __init__(
        self,
        config: Any,
        dataset_stats: Statistics | None = None,
        encoder_in_the_file: bool = False,
        **kwargs: Any,
    ):
        with stand_in(config):
            super().__init__(config, **kwargs)
        cameras = list(config.image_features)
        self.raw_pictures = RawPictures(config.picture_mode, cameras, dataset_stats)
        self._given_statistics = dataset_stats
        if cameras:
            backbones = [
                Backbone(build_encoder(config, encoder_in_the_file))
                for _ in range(self.num_backbones())
            ]
            config.describe(backbones[0].encoder)
            self.put(backbones)

    # ----------------------------------------------------------------------- subclasses implement

    def num_backbones(self) -> int:
        """How many networks LeRobot's policy has for pictures."""
        return 1

    def put(self, backbones: Sequence[Backbone]) -> None:
        """Put them where LeRobot's policy has its networks."""
        raise NotImplementedError

    # ----------------------------------------------------------------------- LeRobot's interface

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: Any, **kwargs: Any) -> Any:
        """LeRobot's. The encoder comes from the file, and every tensor must be in it."""
        return super().from_pretrained(  # type: ignore[misc]
            pretrained_name_or_path, encoder_in_the_file=True, **kwargs | {"strict": True}
        )

    @classmethod
    def _load_as_safetensor(cls, model: Any, *arguments: Any) -> Any:
        """LeRobot's. Statistics that were given stay, as in LeRobot's preprocessor."""
        policy = super()._load_as_safetensor(model, *arguments)  # type: ignore[misc]
        if policy._given_statistics:
            policy.raw_pictures.set_statistics(policy._given_statistics)
        return policy

    def get_optim_params(self) -> list[dict[str, Any]]:
        """LeRobot's parameter groups without the encoder, and a group of what learns in it."""
        theirs = list(super().get_optim_params())  # type: ignore[misc]
        groups = theirs if isinstance(theirs[0], dict) else [{"params": theirs}]
        encoders = [module for module in self.modules() if isinstance(module, Encoder)]
        inside = [parameter for encoder in encoders for parameter in encoder.parameters()]
        known = {id(parameter) for parameter in inside}
        outside = [
            {**group, "params": [p for p in group["params"] if id(p) not in known]}
            for group in groups
        ]
        learning = [parameter for parameter in inside if parameter.requires_grad]
        own = {"params": learning, "lr": self.config.optimizer_lr_backbone}
        return [group for group in (*outside, own) if group["params"]]

    def forward(self, batch: dict[str, Tensor], *arguments: Any, **kwargs: Any) -> Any:
        """LeRobot's: the loss of a batch."""
        return super().forward(self.take_back(batch), *arguments, **kwargs)

    def take_back(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with raw pictures, of one size if LeRobot's policy stacks them."""
        cameras = [key for key in self.config.image_features if key in batch]
        raw = {key: self.raw_pictures(key, batch[key]) for key in cameras}
        if len({pictures.shape[-3:] for pictures in raw.values()}) > 1 and self.stacks_cameras:
            raw = {key: self._fit(pictures) for key, pictures in raw.items()}
        return {**batch, **raw}

    stacks_cameras: bool = False

    def _fit(self, pictures: Tensor) -> Tensor:
        """Resize and crop raw pictures as the encoder does; it then leaves their size alone."""
        own = self.config.preprocessing
        return replace(own, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(pictures, pictures.device)
