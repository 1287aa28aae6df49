"""Layouts: a weights file of any known origin -> the encoder's tensors under torchvision's names.

A new layout is one entry in `LAYOUTS`. A tensor is left out only by the written rule of its layout.
`models.tensor_files` opens the file, `models.loading` checks that the tensors fill the network, and
`models.sources` resolves names that are not files (the catalogue's, `timm:`, `hf:`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mcr.errors import UserError, require_choice
from mcr.models import efficientnet
from mcr.models.backbones import BACKBONES, TIMM, identify_backbone
from mcr.models.preprocessing import Preprocessing
from mcr.models.tensor_files import (
    WRAPPERS,
    clean,
    named_error,
    read_content,
    require_tensors,
    sha256,
    unwrap,
)
from mcr.models.vision_transformer import to_torchvision

CHECKPOINT_FORMAT = "mcr-checkpoint-1"  # what training saves
EXPORT_FORMAT = "mcr-encoder-1"  # what `release.export` writes
UNTRAINED = "untrained"  # key of a file's provenance; true if its weights are random on purpose
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_MOST_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class Layout:
    """Where a kind of file keeps the encoder's tensors, and what it leaves unsaid.

    name:          what messages call it
    holder:        key of the file's dictionary that holds the tensors; "" = the dictionary itself
    mark:          a tensor that only files of this layout have; "" = none is needed
    prefix:        what the file puts before torchvision's names
    ignored:       prefixes of tensors that do not belong to the encoder
    timm_names:    the names are those of timm's ViT instead of torchvision's
    backbones:     the networks that are published in this layout; () = any
    preprocessing: how pictures must be prepared; a ViT with positions for another size than 224
                   takes that size, and `resize` in proportion
    fixed_size:    positions are interpolated to the size of `preprocessing` instead
    described:     the file itself names its network and preprocessing, under `encoder_config`
    """

    name: str
    holder: str = ""
    mark: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    timm_names: bool = False
    backbones: tuple[str, ...] = ()
    preprocessing: Preprocessing = Preprocessing()
    fixed_size: bool = False
    described: bool = False


# A file has the first of these layouts whose holder and mark it has.
LAYOUTS = (
    Layout("mcr training checkpoint", "encoder", described=True),
    Layout(
        "upstream MCR training snapshot",
        "mcr",
        prefix="convnet.",
        ignored=("state_encoder.", "bc_trunk.", "bc_policy."),
    ),
    Layout("R3M model", "r3m", prefix="convnet.", ignored=("lang_enc.", "lang_rew.")),
    Layout("VIP model", "vip", prefix="convnet."),  # its `fc` is part of the representation
    Layout(  # VC-1, MAE and MVP; MVP's own preprocessing is in the catalogue
        "MAE ViT",
        "model",
        mark="cls_token",
        ignored=("decoder_", "mask_token", "head."),
        timm_names=True,
        preprocessing=Preprocessing(interpolation="bicubic"),
    ),
    Layout(
        "DINOv2 ViT",
        mark="blocks.0.ls1.gamma",
        ignored=("mask_token",),
        timm_names=True,
        backbones=tuple(name for name in BACKBONES if "_14" in name),
        preprocessing=Preprocessing(interpolation="bicubic"),
        fixed_size=True,
    ),
    Layout("torchvision classifier", mark="fc.weight", ignored=("fc.",)),
    Layout("torchvision classifier", mark="heads.head.weight", ignored=("heads.",)),
    Layout("torchvision state dict"),
)

# Tensors of networks that are not read by their tensors alone, and what the user can do instead.
_TIMM = "say which of timm's models it is: mcr.load_model(..., backbone='timm:NAME')"
_TIMM_NAMES = f"its names are timm's, whose models prepare pictures in many ways: {_TIMM}"
_FOREIGN = {
    efficientnet.MARK: "it looks like EfficientNet-Lite (timm:tf_efficientnet_lite0, ...): "
    f"{_TIMM}",
    "storage_tokens": f"it looks like DINOv3 (timm:vit_small_patch16_dinov3_qkvb, ...): {_TIMM}",
    "reg_token": _TIMM_NAMES,
    "cls_token": _TIMM_NAMES,
    "stem.0.weight": _TIMM_NAMES,
    "embeddings.cls_token": "its names are those of the transformers library, which is not read "
    "here: take the authors' own file, or timm's (timm:NAME)",
}


@dataclass(frozen=True)
class Weights:
    """An encoder's tensors, and what is known about them.

    path:          where they were read
    layout:        the name of the file's layout
    tensors:       float32 (counters int64), finite, on the CPU, under torchvision's names
    backbone:      a name of `BACKBONES`, or "timm:NAME"
    preprocessing: how pictures must be prepared
    provenance:    how it was trained, as far as the file says: step, config, dataset, versions; or
                   that it was not, under UNTRAINED
    """

    path: Path
    layout: str
    tensors: dict[str, Tensor]
    backbone: str
    preprocessing: Preprocessing
    provenance: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path, backbone: str | None = None) -> Weights:
    """Read a weights file, or the folder of an export.

    backbone: the network, a name of `BACKBONES`; None = recognise it
    Raises UserError if the file is missing or damaged, has no known layout, holds another network,
    or holds Python objects that are not tensors.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path to the weights")
    beside = path if path.is_dir() else path.parent
    is_safetensors = path.suffix == ".safetensors"
    try:
        if path.is_dir() or (is_safetensors and (beside / CONFIG_NAME).exists()):
            weights = _read_export(path)
        elif is_safetensors and backbone is None:
            raise UserError(
                f"there is no {CONFIG_NAME} beside it to say how pictures must be prepared: give "
                "the whole folder of the export, or pass backbone= if the weights are of another "
                "library"
            )
        else:
            weights = _read_file(path, backbone)
        if backbone not in (None, weights.backbone):
            raise UserError(f"it is a {weights.backbone}, not the {backbone} that was asked for")
    except UserError as error:
        raise named_error(path, error) from error
    return weights


def read_average(path: str | Path) -> dict[str, Tensor]:
    """Return the average of the encoder's weights in a training checkpoint.

    Raises UserError if it holds none.
    """
    try:
        content = read_content(Path(path).expanduser())
    except UserError as error:
        raise named_error(Path(path), error) from error
    held = content.get("encoder_ema") if isinstance(content, Mapping) else None
    if held is None:
        raise UserError(
            f"{path}: it holds no average of the weights; train with model.ema=0.999, or export "
            "the last weights, without --ema"
        )
    return clean(require_tensors(held))


# --------------------------------------------------------------------------- exports


def _read_export(path: Path) -> Weights:
    """Read an export: its folder, or the .safetensors in it."""
    folder, file = (path, path / WEIGHTS_NAME) if path.is_dir() else (path.parent, path)
    for needed in (folder / CONFIG_NAME, file):
        if not needed.is_file():
            raise UserError(
                f"there is no {needed.name} in the folder {folder.name}; give the folder that "
                "`mcr export` wrote, or a checkpoint file"
            )
    config = _read_config(folder / CONFIG_NAME)
    ours = config.get("mcr") if isinstance(config, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != EXPORT_FORMAT:
        raise UserError(
            f"{CONFIG_NAME} describes no encoder of the format {EXPORT_FORMAT!r}; it is of another "
            "library (if timm's, load 'timm:NAME') or of another version of mcr"
        )
    described = _described(ours.get("encoder_config"))
    _require_consistent(config.get("pretrained_cfg"), *described)
    provenance = ours.get("training", {})
    if not isinstance(provenance, dict):
        raise UserError(f"{CONFIG_NAME} has a value of the wrong kind: mcr.training")
    content = read_content(file)
    _require_sha256(file, ours.get("weights_sha256"))
    tensors = clean(require_tensors(content))
    return Weights(path, "mcr export", tensors, *described, provenance)


def _read_config(path: Path) -> Any:
    """Read the config of an export. Raises UserError if it is not JSON or absurdly large."""
    if path.stat().st_size > _MOST_CONFIG_BYTES:
        raise UserError(f"{path.name} is larger than {_MOST_CONFIG_BYTES:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is not JSON ({error}); download or copy it again") from error


def _require_consistent(told: Any, backbone: str, preprocessing: Preprocessing) -> None:
    """Raise UserError unless what other libraries are told is what `mcr` is told.

    Preprocessing has no checksum, so that it can be changed by hand, but it is written twice.

    told: the `pretrained_cfg`; None claims nothing
    """
    meant = json.loads(json.dumps(preprocessing.pretrained_cfg(backbone)))
    if told is None or told == meant:
        return
    held = told if isinstance(told, dict) else {}
    keys = [key for key in meant if held.get(key) != meant[key]] or sorted({*held} - {*meant})
    raise UserError(
        f"{CONFIG_NAME} contradicts itself: pretrained_cfg differs from mcr.encoder_config in "
        f"{', '.join(keys[:2])}; download or copy the folder again, or change both in the same way"
    )


def _require_sha256(file: Path, claimed: Any) -> None:
    """claimed: what the export says; None, as earlier exports of a .pth did, claims nothing"""
    if claimed is None or (found := sha256(file)) == claimed:
        return
    shown = f"{claimed[:16]}..." if isinstance(claimed, str) else "of the wrong kind"
    raise UserError(
        f"{file.name} was changed or damaged: its sha256 is {found[:16]}..., but the one in "
        f"{CONFIG_NAME} is {shown}; download or copy the folder again"
    )


def _described(encoder_config: Any) -> tuple[str, Preprocessing]:
    """The backbone and the preprocessing of an `encoder_config`."""
    backbone, preprocessing = Preprocessing.from_config(encoder_config)
    if not backbone.startswith(TIMM):
        require_choice("backbone", backbone, BACKBONES)
    return backbone, preprocessing


# --------------------------------------------------------------------------- other files


def _read_file(path: Path, backbone: str | None) -> Weights:
    """Read a file by the entry of `LAYOUTS` that it matches."""
    content = read_content(path)
    if not isinstance(content, Mapping):
        raise UserError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
    layout = next(layout for layout in LAYOUTS if _matches(layout, content))
    held = unwrap(require_tensors(content[layout.holder] if layout.holder else content))
    if layout.described:
        return _read_checkpoint(path, layout, content, held)
    wanted = {
        name.removeprefix(layout.prefix): tensor
        for name, tensor in held.items()
        if not name.startswith(layout.ignored)
    }
    if layout.timm_names:
        size = layout.preprocessing.image_size if layout.fixed_size else None
        wanted = to_torchvision(wanted, size)
    tensors = clean(wanted)
    backbone = _require_known(tensors, layout, backbone)
    return Weights(path, layout.name, tensors, backbone, _preprocessing(layout, tensors))


def _matches(layout: Layout, content: Mapping[str, Any]) -> bool:
    held = content.get(layout.holder) if layout.holder else content
    if not layout.mark:
        return held is not None
    return isinstance(held, Mapping) and any(prefix + layout.mark in held for prefix in WRAPPERS)


def _read_checkpoint(
    path: Path, layout: Layout, content: Mapping[str, Any], held: Mapping[str, Tensor]
) -> Weights:
    if content.get("format") != CHECKPOINT_FORMAT:
        found = content.get("format")
        found = (
            found if isinstance(found, str | None) else type(found)
        )  # a value may be of any length
        raise UserError(
            f"its format is {found!r}, not "
            f"{CHECKPOINT_FORMAT!r}: load it with the version of mcr that wrote it"
        )
    described = _described(content.get("encoder_config"))
    known = ("step", "config", "dataset", "versions", UNTRAINED)
    provenance = {key: content[key] for key in known if key in content}
    return Weights(path, layout.name, clean(held), *described, provenance)


def _require_known(tensors: Mapping[str, Tensor], layout: Layout, backbone: str | None) -> str:
    """The backbone that was asked for or recognised, if the tensors can be read as one."""
    for name, advice in _FOREIGN.items():
        if name in tensors:
            raise UserError(advice)
    backbone = backbone or identify_backbone(tensors)
    if layout.backbones and backbone not in layout.backbones:
        raise UserError(f"it is a {backbone} with LayerScale, but not DINOv2's: {_TIMM}")
    return backbone


def _preprocessing(layout: Layout, tensors: Mapping[str, Tensor]) -> Preprocessing:
    """That of the layout, for the size of picture that a ViT's positions are for."""
    positions, patches = tensors.get("encoder.pos_embedding"), tensors.get("conv_proj.weight")
    if layout.fixed_size or positions is None or patches is None:
        return layout.preprocessing
    if positions.ndim != 3 or patches.ndim != 4:  # loading will name them
        return layout.preprocessing
    size = round((positions.shape[1] - 1) ** 0.5) * patches.shape[-1]
    return replace(
        layout.preprocessing, image_size=size, resize=Preprocessing.for_size(size).resize
    )
