"""LeRobot's Diffusion Policy with one of our encoders: `--policy.type=mcr_diffusion`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mcr.errors import UserError
from mcr.lerobot.backbone import Backbone, EncoderPolicy
from mcr.lerobot.compatibility import require_lerobot
from mcr.lerobot.options import EncoderOptions, raw_pictures

require_lerobot()
from lerobot.configs.policies import PreTrainedConfig  # noqa: E402
from lerobot.configs.types import NormalizationMode  # noqa: E402
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # noqa: E402
from lerobot.policies.diffusion.modeling_diffusion import (  # noqa: E402
    DiffusionPolicy,
    SpatialSoftmax,
)


@PreTrainedConfig.register_subclass("mcr_diffusion")
@dataclass
class MCRDiffusionConfig(EncoderOptions, DiffusionConfig):
    """LeRobot's DiffusionConfig with the fields of `EncoderOptions`.

    resize_shape, crop_shape: act on raw pictures, before the encoder resizes and crops them itself
    """

    normalization_mapping: dict[str, NormalizationMode] = raw_pictures(
        state=NormalizationMode.MIN_MAX, action=NormalizationMode.MIN_MAX
    )
    use_group_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_batch_norm(self.use_group_norm)

    def validate_features(self) -> None:
        """LeRobot's, but cameras of different sizes are allowed if nothing crops them."""
        if len({feature.shape for feature in self.image_features.values()}) < 2:
            super().validate_features()
        elif self.crop_shape or self.resize_shape:
            raise UserError(
                "the cameras differ in size: leave out crop_shape, crop_ratio and resize_shape; "
                "the encoder resizes and crops pictures itself"
            )


class MCRDiffusionPolicy(EncoderPolicy, DiffusionPolicy):
    """LeRobot's DiffusionPolicy."""

    config_class = MCRDiffusionConfig
    name = "mcr_diffusion"
    stacks_cameras = True
    diffusion: Any

    def num_backbones(self) -> int:
        return len(self._heads())

    def put(self, backbones: Sequence[Backbone]) -> None:
        keypoints = self.config.spatial_softmax_num_keypoints
        for head, backbone in zip(self._heads(), backbones, strict=True):
            head.backbone = backbone
            head.pool = SpatialSoftmax(backbone.feature_shape, num_kp=keypoints)

    def _heads(self) -> list[Any]:
        """LeRobot's networks from pictures to a vector: one, or one per camera."""
        heads = self.diffusion.rgb_encoder
        return list(heads) if isinstance(heads, nn.ModuleList) else [heads]

    def select_action(self, batch: dict[str, Tensor], *arguments: Any, **kwargs: Any) -> Tensor:
        """LeRobot's: an observation -> the next action [B, A]."""
        return super().select_action(self.take_back(batch), *arguments, **kwargs)


def require_batch_norm(use_group_norm: bool) -> None:
    """Raise UserError if layers of the encoder were to be replaced."""
    if use_group_norm:
        raise UserError(
            "use_group_norm=True replaces layers of the network by untrained ones: leave it out, "
            "an encoder's batch statistics are fixed"
        )
