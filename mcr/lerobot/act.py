"""ACT, LeRobot's Action Chunking Transformer, with one of our encoders: `--policy.type=mcr_act`."""

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
from lerobot.policies.act.configuration_act import ACTConfig  # noqa: E402
from lerobot.policies.act.modeling_act import ACTPolicy  # noqa: E402


@PreTrainedConfig.register_subclass("mcr_act")
@dataclass
class MCRACTConfig(EncoderOptions, ACTConfig):
    """LeRobot's ACTConfig with the fields of `EncoderOptions`."""

    normalization_mapping: dict[str, NormalizationMode] = raw_pictures(
        state=NormalizationMode.MEAN_STD, action=NormalizationMode.MEAN_STD
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replace_final_stride_with_dilation:
            raise UserError(
                "replace_final_stride_with_dilation changes a ResNet of torchvision: leave it out, "
                "the encoder's network is used as it was trained"
            )


class MCRACTPolicy(EncoderPolicy, ACTPolicy):
    """LeRobot's ACTPolicy. Cameras may differ in size: all give maps of the same size."""

    config_class = MCRACTConfig
    name = "mcr_act"
    model: Any

    def put(self, backbones: Sequence[Backbone]) -> None:
        (backbone,) = backbones
        width, dim = backbone.feature_shape[0], self.config.dim_model
        self.model.backbone = _FeatureMap(backbone)
        self.model.encoder_img_feat_input_proj = nn.Conv2d(width, dim, kernel_size=1)

    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """LeRobot's: observations -> actions [B, chunk_size, A]."""
        return super().predict_action_chunk(self.take_back(batch), **kwargs)


class _FeatureMap(nn.Module):
    """A backbone whose map is returned as torchvision's IntermediateLayerGetter returns it."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        return {"feature_map": self.backbone(pictures)}
