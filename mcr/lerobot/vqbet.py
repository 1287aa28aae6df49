"""LeRobot's VQ-BeT with one of our encoders: `--policy.type=mcr_vqbet`. It takes one camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcr.lerobot.backbone import Backbone, EncoderPolicy
from mcr.lerobot.compatibility import require_lerobot
from mcr.lerobot.diffusion import require_batch_norm
from mcr.lerobot.options import EncoderOptions, raw_pictures

require_lerobot()
from lerobot.configs.policies import PreTrainedConfig  # noqa: E402
from lerobot.configs.types import NormalizationMode  # noqa: E402
from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig  # noqa: E402
from lerobot.policies.vqbet.modeling_vqbet import SpatialSoftmax, VQBeTPolicy  # noqa: E402


@PreTrainedConfig.register_subclass("mcr_vqbet")
@dataclass
class MCRVQBeTConfig(EncoderOptions, VQBeTConfig):
    """LeRobot's VQBeTConfig with the fields of `EncoderOptions`; by default it does not crop."""

    normalization_mapping: dict[str, NormalizationMode] = raw_pictures(
        state=NormalizationMode.MIN_MAX, action=NormalizationMode.MIN_MAX
    )
    crop_shape: tuple[int, int] | None = None
    use_group_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_batch_norm(self.use_group_norm)


class MCRVQBeTPolicy(EncoderPolicy, VQBeTPolicy):
    """LeRobot's VQBeTPolicy."""

    config_class = MCRVQBeTConfig
    name = "mcr_vqbet"
    vqbet: Any

    def put(self, backbones: Sequence[Backbone]) -> None:
        (backbone,) = backbones
        head = self.vqbet.rgb_encoder
        head.backbone = backbone
        keypoints = self.config.spatial_softmax_num_keypoints
        head.pool = SpatialSoftmax(backbone.feature_shape, num_kp=keypoints)

    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """LeRobot's: an observation -> the next action [B, A]."""
        return super().select_action(self.take_back(batch), **kwargs)
