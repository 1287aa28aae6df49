"""Encoders as robomimic's visual backbones: the `backbone_class` of its configs.

Each is a `ConvBase` that VisualCore builds from `backbone_kwargs`. robomimic silently drops keyword
arguments that a class does not name in its signature, so all are named, and a missing one is an
error. Pictures arrive as float [B, 3, H, W] in [0, 1], after robomimic's randomizers. The encoder
resizes, crops and normalises them itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mcr.errors import UserError, require_choice
from mcr.features.extraction import feature_shape
from mcr.models.backbones import BACKBONES
from mcr.models.catalogue import MODELS
from mcr.models.encoder import Encoder
from mcr.models.loading import load_model
from mcr.models.preprocessing import Preprocessing
from mcr.models.untrained import build_untrained
from mcr.robomimic.compatibility import ROBOMIMIC_VERSIONS, require_version

require_version("robomimic", ROBOMIMIC_VERSIONS)
from robomimic.models.base_nets import ConvBase  # noqa: E402

OUTPUTS = ("pooled", "spatial")
R3M_CLASSES = ("resnet18", "resnet34", "resnet50")
MVP_CLASSES = tuple(name.removeprefix("mvp_") for name in MODELS if name.startswith("mvp_"))


class EncoderConv(ConvBase):
    """Any encoder that `mcr.load_model` loads.

    input_channel: robomimic passes it; it must be 3
    weights:       what `load_model` takes: a path, a name of the catalogue, `hf:...`
    model_class:   a name of BACKBONES; needed if nothing else says which network it is
    freeze:        True = nothing learns, whatever `set_train` says; False = all layers learn, or
                   those in `trainable`. Pretrained batch normalisation keeps its statistics in
                   both cases; that of random weights has live ones where it learns.
    trainable:     names of layers, as `load_model` takes them
    output:        "pooled", [D], for pool_class None; "spatial", the last map [D, h, w], for
                   SpatialSoftmax and other pool classes
    pretrained:    False = random weights; `weights` must then be None
    preprocessing: replaces that of the weights

    Raises UserError for contradictions and for weights that do not fit the network.
    """

    def __init__(
        self,
        input_channel: int = 3,
        weights: str | None = None,
        model_class: str | None = None,
        freeze: bool = True,
        trainable: Sequence[str] = (),
        output: str = "pooled",
        pretrained: bool = True,
        *,
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__()
        if input_channel != 3:
            raise UserError(
                f"{type(self).__name__} takes RGB, not {input_channel} channels: no depth, and "
                "CropRandomizer without pos_enc"
            )
        if freeze and trainable:
            raise UserError(
                f"freeze=True and trainable={list(trainable)} contradict each other: set freeze to "
                "False if these layers should learn"
            )
        self.output = require_choice("output", output, OUTPUTS)
        self.freeze = freeze
        if pretrained:
            self.encoder = _load(weights, model_class)
            self.encoder.preprocessing = preprocessing or self.encoder.preprocessing
        else:
            self.encoder = _build_untrained(weights, model_class, preprocessing or Preprocessing())
        if not freeze:
            self.encoder.unfreeze(trainable or self.encoder.stages)

    def forward(self, inputs: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1], any size -> float [B, D] or [B, D, h, w]."""
        return self.encoder.features(inputs, output=self.output)

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """[D] or [D, h, w]; the same for pictures of any size, because the encoder resizes them."""
        # Upstream: robomimic's R3MConv says [D, 1, 1], which SpatialSoftmax silently turns into a
        # constant. It refuses [D].
        if self.output == "pooled":
            return [self.encoder.embed_dim]
        return list(feature_shape(self.encoder, self.output))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.encoder.backbone}, output={self.output}, "
            f"freeze={self.freeze})"
        )


class MCRConv(EncoderConv):
    """Encoders trained by MCR: the released ResNet-50, or one of your own in `weights`.

    mcr_model_class: a name of BACKBONES (resnet18, resnet34, resnet50, vit_b_16, ...); None = the
        network of `weights`
    """

    def __init__(
        self,
        input_channel: int = 3,
        mcr_model_class: str | None = None,
        weights: str | None = None,
        freeze: bool = True,
        trainable: Sequence[str] = (),
        output: str = "pooled",
        pretrained: bool = True,
    ):
        if mcr_model_class is not None:
            require_choice("mcr_model_class", mcr_model_class, BACKBONES)
        if weights is None and pretrained and mcr_model_class in (None, "resnet50"):
            weights = "mcr_resnet50"
        super().__init__(
            input_channel, weights, mcr_model_class, freeze, trainable, output, pretrained
        )


class R3MConv(EncoderConv):
    """R3M's encoders, without the package r3m. Replaces robomimic's class of the same name."""

    def __init__(
        self,
        input_channel: int = 3,
        r3m_model_class: str = "resnet18",
        weights: str | None = None,
        freeze: bool = True,
        trainable: Sequence[str] = (),
        output: str = "pooled",
        pretrained: bool = True,
    ):
        require_choice("r3m_model_class", r3m_model_class, R3M_CLASSES)
        if weights is None and pretrained:
            weights = f"r3m_{r3m_model_class}"
        super().__init__(
            input_channel, weights, r3m_model_class, freeze, trainable, output, pretrained
        )


class MVPConv(EncoderConv):
    """MVP's encoders, without the package mvp. Replaces robomimic's class of the same name."""

    # Upstream: robomimic's MVPConv feeds pixels in [0, 1], although MVP was trained on pictures
    # that were normalised as ImageNet's. Here they are normalised.
    def __init__(
        self,
        input_channel: int = 3,
        mvp_model_class: str = "vitb-mae-egosoup",
        weights: str | None = None,
        freeze: bool = True,
        trainable: Sequence[str] = (),
        output: str = "pooled",
        pretrained: bool = True,
    ):
        require_choice("mvp_model_class", mvp_model_class, MVP_CLASSES)
        model = MODELS[f"mvp_{mvp_model_class}"]
        if weights is None and pretrained:
            weights = model.name
        super().__init__(
            input_channel,
            weights,
            model.backbone,
            freeze,
            trainable,
            output,
            pretrained,
            preprocessing=model.preprocessing,  # MVP's files do not hold it
        )


def _load(weights: str | None, model_class: str | None) -> Encoder:
    if weights is None:
        raise UserError(
            "backbone_kwargs names no weights: set weights to a file, an export's folder or a name "
            "of mcr.list_models(), or pretrained=False for random ones"
        )
    return load_model(weights, backbone=model_class)


def _build_untrained(
    weights: str | None, model_class: str | None, preprocessing: Preprocessing
) -> Encoder:
    if weights is not None:
        raise UserError(f"pretrained=False means random weights: leave out weights={weights!r}")
    if model_class is None:
        raise UserError("pretrained=False needs a model class, which says which network to build")
    return build_untrained(model_class, preprocessing)
