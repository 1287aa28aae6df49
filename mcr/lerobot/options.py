"""What the configs of our policies for LeRobot share: which encoder, and whether it learns.

LeRobot reads these fields from the command line (`--policy.vision_backbone=...`) and writes them to
the `config.json` of a saved policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mcr.errors import UserError
from mcr.lerobot.compatibility import require_lerobot
from mcr.models.encoder import Encoder
from mcr.models.preprocessing import Preprocessing

require_lerobot()
from lerobot.configs.types import NormalizationMode  # noqa: E402

_STAND_IN = "resnet18"  # passes LeRobot's checks of a name; its network is replaced


def raw_pictures(state: NormalizationMode, action: NormalizationMode) -> Any:
    """The field `normalization_mapping` with pictures as they are."""
    modes = {"VISUAL": NormalizationMode.IDENTITY, "STATE": state, "ACTION": action}
    return field(default_factory=lambda: dict(modes))


@dataclass
class EncoderOptions:
    """The fields that a config of LeRobot gets in addition, or whose meaning changes.

    vision_backbone:  what `mcr.load_model` reads
    freeze_backbone:  True = the encoder does not learn
    trainable_layers: with freeze_backbone=False, the layers that learn, as `load_model` takes
                      them; none named = all
    optimizer_lr_backbone: learning rate of an encoder that learns
    cached_features:  folder that `mcr features` wrote with --output spatial, to train on it instead
                      of on pictures; "" = none
    network, preprocessing: of the encoder; a policy fills them in, so that it can be loaded without
                      the file that `vision_backbone` names
    Raises UserError for contradictions.
    """

    vision_backbone: str = ""
    pretrained_backbone_weights: str | None = None
    freeze_backbone: bool = True
    trainable_layers: list[str] = field(default_factory=list)
    optimizer_lr_backbone: float = 1e-5
    cached_features: str = ""
    network: str = ""
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        source, self.vision_backbone = self.vision_backbone, _STAND_IN
        super().__post_init__()  # type: ignore[misc]  # LeRobot's
        self.vision_backbone = source
        if not source:
            raise UserError(
                "vision_backbone names no encoder: set it to a file, an export's folder or a name "
                "of mcr.list_models()"
            )
        if self.pretrained_backbone_weights is not None:
            raise UserError(
                f"pretrained_backbone_weights={self.pretrained_backbone_weights!r}: the weights "
                "are those of vision_backbone; leave it out"
            )
        if self.freeze_backbone and self.trainable_layers:
            raise UserError(
                f"freeze_backbone=True and trainable_layers={self.trainable_layers} contradict "
                "each other: set freeze_backbone to False if these layers should learn"
            )
        if self.cached_features:
            self._require_raw_and_frozen()

    @property
    def picture_mode(self) -> NormalizationMode:
        """How LeRobot normalises pictures for this policy."""
        return self.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY)  # type: ignore[attr-defined]

    def describe(self, encoder: Encoder) -> None:
        """Note what must be known to build the network of a saved policy."""
        self.network, self.preprocessing = encoder.backbone, encoder.preprocessing

    def _require_raw_and_frozen(self) -> None:
        changed = [name for name in ("crop_shape", "resize_shape") if getattr(self, name, None)]
        if not self.freeze_backbone:
            changed.append("freeze_backbone=False")
        if self.picture_mode is not NormalizationMode.IDENTITY:
            changed.append(f"VISUAL={self.picture_mode.value} in normalization_mapping")
        if changed:
            raise UserError(
                f"cached_features={self.cached_features} cannot be used with {', '.join(changed)}: "
                "features are those of whole raw pictures by a frozen encoder"
            )
