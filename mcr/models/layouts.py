"""Layouts: a weights file of any known origin -> the encoder's tensors under torchvision's names.

A new layout is one entry in `LAYOUTS`. Files are untrusted: pickles are read with `weights_only`,
so nothing in them runs, and tensors are dropped only by the written rule of their layout. Whether
the tensors fill the network is checked in `models.loading`; names that are no files (a catalogue's,
`timm:`, `hf:`) are resolved in `models.sources`.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from mcr.errors import UserError, require_choice
from mcr.models.backbones import BACKBONES, identify_backbone
from mcr.models.preprocessing import Preprocessing
from mcr.models.vision_transformer import to_torchvision

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = "mcr-checkpoint-1"  # what training saves
EXPORT_FORMAT = "mcr-encoder-1"  # what `release.export` writes
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

_COPY_AGAIN = "download or copy it again"
_IMAGENET = Preprocessing()  # resize 256, crop 224, normalise as for ImageNet, bilinear


@dataclass(frozen=True)
class Layout:
    """Where a kind of file keeps the encoder.

    name:       for people
    holder:     key of the file's dictionary that holds the tensors; "" = the file is the dictionary
    mark:       a name that must be among the tensors for this to be the layout; "" = any
    prefix:     what stands before torchvision's names
    ignored:    beginnings of names that belong to other parts than the encoder
    timm_names: names are those of timm's ViT, not torchvision's
    backbones:  what is published in it; () = any
    sees:       how it expects pictures; a ViT of another size than its 224 keeps the proportion
    fixed_size: positions are interpolated to `sees.image_size`, not kept for their own size
    described:  the file says itself, under `encoder_config`, which network it is and what it sees
    """

    name: str
    holder: str = ""
    mark: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    timm_names: bool = False
    backbones: tuple[str, ...] = ()
    sees: Preprocessing = _IMAGENET
    fixed_size: bool = False
    described: bool = False


# The first whose holder and mark are in the file applies.
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
    Layout(  # VC-1, MAE and MVP; how MVP sees pictures is in the catalogue: tensors cannot tell
        "MAE ViT",
        "model",
        mark="cls_token",
        ignored=("decoder_", "mask_token", "head."),
        timm_names=True,
        sees=Preprocessing(interpolation="bicubic"),
    ),
    Layout(
        "DINOv2 ViT",
        mark="blocks.0.ls1.gamma",
        ignored=("mask_token",),
        timm_names=True,
        backbones=tuple(name for name in BACKBONES if "_14" in name),
        sees=Preprocessing(interpolation="bicubic"),
        fixed_size=True,
    ),
    Layout("torchvision classifier", mark="fc.weight", ignored=("fc.",)),
    Layout("torchvision classifier", mark="heads.head.weight", ignored=("heads.",)),
    Layout("torchvision state dict"),
)

# Names by which an unknown dictionary gives its origin away, and what its owner can do.
_TIMM = "say which of timm's models it is: mcr.load_model(..., backbone='timm:NAME')"
_FOREIGN = {
    "storage_tokens": f"it looks like DINOv3 (timm:vit_small_patch16_dinov3_qkvb, ...): {_TIMM}",
    "reg_token": f"its names are timm's, whose models prepare pictures in many ways: {_TIMM}",
    "cls_token": f"its names are timm's, whose models prepare pictures in many ways: {_TIMM}",
    "stem.0.weight": f"its names are timm's, whose models prepare pictures in many ways: {_TIMM}",
    "embeddings.cls_token": "its names are those of the transformers library, which is not read "
    "here: take the authors' own file, or timm's (timm:NAME)",
}

# What wrappers put before all names: nothing, (Distributed)DataParallel, torch.compile.
_WRAPPERS = ("", "module.", "_orig_mod.")


@dataclass(frozen=True)
class Weights:
    """What a file says about an encoder.

    tensors:     float32 (counters int64), finite, on the CPU, under torchvision's names
    provenance:  how it was trained, as far as the file knows: step, config, dataset, versions
    """

    path: Path
    layout: str
    tensors: dict[str, Tensor]
    backbone: str
    preprocessing: Preprocessing
    provenance: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path, backbone: str | None = None) -> Weights:
    """Read a weights file or an export's folder.

    backbone: which network it is, where the tensors cannot tell; None = the file says.
    Raises UserError when it is missing, damaged, of no known layout, or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path to the weights")
    try:
        if _is_export(path):
            return _require_backbone(_read_export(path), backbone)
        return _read_file(path, backbone)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file under its own names: the dictionary, or its `state_dict` or `model`.

    For networks that are no entry of `BACKBONES`. Raises UserError as `read_weights`.
    """
    try:
        content = _load(path)
        for holder in ("state_dict", "model"):
            if isinstance(content, Mapping) and isinstance(content.get(holder), Mapping):
                content = content[holder]
        return _clean(_unwrap(_require_tensors(content)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


# --------------------------------------------------------------------------- kinds of files


def _is_export(path: Path) -> bool:
    return path.is_dir() or (path.suffix == ".safetensors" and (path.parent / CONFIG_NAME).exists())


def _read_export(path: Path) -> Weights:
    """An export: the folder, or the .safetensors in it."""
    folder, weights = (path, path / WEIGHTS_NAME) if path.is_dir() else (path.parent, path)
    for needed in (folder / CONFIG_NAME, weights):
        if not needed.is_file():
            raise UserError(
                f"there is no {needed.name} in the folder {folder.name}; give the folder that "
                "scripts/export.py wrote, or a checkpoint file"
            )
    tensors = _load(weights)
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{CONFIG_NAME} is not JSON ({error}); {_COPY_AGAIN}") from error
    ours = config.get("mcr") if isinstance(config, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != EXPORT_FORMAT:
        raise UserError(
            f"{CONFIG_NAME} describes no encoder of the format {EXPORT_FORMAT!r}; it is of another "
            "library (if timm's, load 'timm:NAME') or of another version of mcr"
        )
    description = _described(ours.get("encoder_config"))
    return Weights(path, "mcr export", _clean(tensors), *description, ours.get("training", {}))


def _read_file(path: Path, backbone: str | None) -> Weights:
    """A file of tensors: whichever entry of `LAYOUTS` it matches."""
    if path.suffix == ".safetensors" and backbone is None:
        raise UserError(
            f"there is no {CONFIG_NAME} beside it to say how pictures must be prepared: give the "
            "whole folder of the export, or pass backbone= if it is the weights of another library"
        )
    content = _load(path)
    if not isinstance(content, Mapping):
        raise UserError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
    layout = next(layout for layout in LAYOUTS if _matches(layout, content))
    held = _unwrap(_require_tensors(content[layout.holder] if layout.holder else content))
    if layout.described:
        return _require_backbone(_read_checkpoint(path, layout, content, held), backbone)
    tensors = _clean(_select(held, layout))
    backbone = _identify(tensors, layout, backbone)
    sees = layout.sees if layout.fixed_size else _for_positions(layout.sees, tensors)
    return Weights(path, layout.name, tensors, backbone, sees)


def _matches(layout: Layout, content: Mapping[str, Any]) -> bool:
    held = content.get(layout.holder) if layout.holder else content
    if not layout.mark:
        return held is not None
    return isinstance(held, Mapping) and any(before + layout.mark in held for before in _WRAPPERS)


def _identify(tensors: Mapping[str, Tensor], layout: Layout, backbone: str | None) -> str:
    """The backbone, asked for or recognised, if it is one that comes in this layout."""
    for mark, advice in _FOREIGN.items():
        if mark in tensors:
            raise UserError(advice)
    backbone = backbone or identify_backbone(tensors)
    if layout.backbones and backbone not in layout.backbones:
        raise UserError(f"it is a {backbone} with LayerScale, but not DINOv2's: {_TIMM}")
    return backbone


def _for_positions(sees: Preprocessing, tensors: Mapping[str, Tensor]) -> Preprocessing:
    """What a ViT whose positions are for another size than 224 sees."""
    positions, patches = tensors.get("encoder.pos_embedding"), tensors.get("conv_proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return sees
    size = round((positions.shape[1] - 1) ** 0.5) * patches.shape[-1]
    return replace(sees, image_size=size, resize=Preprocessing.for_size(size).resize)


def _read_checkpoint(
    path: Path, layout: Layout, content: Mapping[str, Any], held: Mapping[str, Tensor]
) -> Weights:
    if content.get("format") != CHECKPOINT_FORMAT:
        raise UserError(
            f"its format is {content.get('format')!r}, not {CHECKPOINT_FORMAT!r}: load it with the "
            "version of mcr that wrote it"
        )
    description = _described(content.get("encoder_config"))
    known = ("step", "config", "dataset", "versions")
    provenance = {key: content[key] for key in known if key in content}
    return Weights(path, layout.name, _clean(held), *description, provenance)


def _described(encoder_config: Any) -> tuple[str, Preprocessing]:
    backbone, preprocessing = Preprocessing.from_config(encoder_config)
    if not backbone.startswith("timm:"):
        require_choice("backbone", backbone, BACKBONES)
    return backbone, preprocessing


def _require_backbone(weights: Weights, backbone: str | None) -> Weights:
    if backbone not in (None, weights.backbone):
        raise UserError(f"it is a {weights.backbone}, not the {backbone} that was asked for")
    return weights


def _load(path: Path) -> Any:
    """What the file holds, never running anything in it, with every failure in one sentence."""
    _refuse_impostor(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path.name} is damaged ({error}); {_COPY_AGAIN}") from error
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(str(error))) from error
    except (RuntimeError, EOFError, LookupError) as error:  # what torch raises for damaged files
        raise UserError(
            f"it is damaged or cut off at {path.stat().st_size:,} bytes; {_COPY_AGAIN}"
        ) from error


def _refusal(reason: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", reason)
    if found is None:
        return f"it is damaged or no file of torch.save; {_COPY_AGAIN}"
    return (
        f"it holds the Python object {found[1]}, not only tensors; loading that could run code, so "
        "it was refused and nothing ran: save the model's state_dict() instead"
    )


def _refuse_impostor(path: Path) -> None:
    """Raise for what commonly lies under a weights file's name without being one."""
    if path.is_dir():
        raise UserError("it is a folder: give the weights file in it")
    with path.open("rb") as file:
        begin = file.read(64)
    if not begin:
        raise UserError(f"it is empty; {_COPY_AGAIN}")
    if begin.startswith(b"version https://git-lfs"):
        raise UserError("it is a Git LFS pointer, not the weights: run `git lfs pull`")
    if begin.lstrip().startswith(b"<") and b"\0" not in begin:
        raise UserError(
            "it is a web page, not the weights: the link led to a page; use the download link"
        )
    if path.suffix == ".safetensors":
        return
    # torch.save writes a zip file, or (before 1.6) pickles of protocol 2.
    if not begin.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise UserError("it is not a file of torch.save: give a .pth, .pt or .safetensors file")
    if zipfile.is_zipfile(path):
        _refuse_other_archive(path)


def _refuse_other_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    files = {name.partition("/")[2] for name in names}
    if "constants.pkl" in files:
        raise UserError(
            "it is a TorchScript program, not weights: save the model's state_dict() instead"
        )
    if "data.pkl" not in files:
        raise UserError(
            f"it is a zip archive with {', '.join(names[:2]) or 'nothing'} in it, not a file of "
            "torch.save: unpack it and give the weights in it"
        )


# --------------------------------------------------------------------------- tensors


def _require_tensors(held: Any) -> Mapping[str, Tensor]:
    if isinstance(held, Mapping) and held and all(map(_is_tensor_entry, held.items())):
        return held
    keys = ", ".join(str(key) for key in list(held)[:5]) if isinstance(held, Mapping) else held
    raise UserError(f"it holds no weights in a layout known here (keys: {keys})")


def _is_tensor_entry(entry: tuple[Any, Any]) -> bool:
    name, value = entry
    if not (isinstance(name, str) and isinstance(value, Tensor)):
        return False
    return value.layout == torch.strided and not value.is_quantized


def _select(held: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The encoder's tensors under torchvision's names; unknown names stay, to be refused later."""
    wanted = {name: t for name, t in held.items() if not name.startswith(layout.ignored)}
    wanted = {name.removeprefix(layout.prefix): tensor for name, tensor in wanted.items()}
    if not layout.timm_names:
        return wanted
    return to_torchvision(wanted, layout.sees.image_size if layout.fixed_size else None)


def _unwrap(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for wrapper in filter(None, _WRAPPERS):
        if all(name.startswith(wrapper) for name in tensors):
            return _unwrap({name.removeprefix(wrapper): t for name, t in tensors.items()})
    return tensors


def _clean(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32, all finite, with memory of their own; halves are widened, with a message."""
    widened = {str(t.dtype) for t in tensors.values() if t.is_floating_point()} - {"torch.float32"}
    if widened:
        logger.warning("weights are %s: converted to float32", ", ".join(sorted(widened)))
    clean = {}
    for name, tensor in tensors.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        # A copy, because `contiguous()` leaves a channels_last 1 x 1 kernel's strides as they are,
        # and those choose the convolution's algorithm and so the last digits of features.
        clean[name] = tensor.clone(memory_format=torch.contiguous_format)
        if not clean[name].sum().isfinite():  # one pass, three times faster than asking each
            raise UserError(f"the tensor {name} holds NaN or infinity: take an earlier checkpoint")
    return clean
