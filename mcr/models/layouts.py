"""Layouts: a weights file of any known origin -> the encoder's tensors under torchvision's names.

A new layout is one entry in `LAYOUTS`. Files are untrusted: pickles are read with `weights_only`,
so nothing in them runs, and tensors are dropped only by the written rule of their layout. Whether
the tensors fill the network is checked in `models.encoder`.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from mcr.errors import UserError, require_choice
from mcr.models.backbones import BACKBONES, identify_backbone
from mcr.models.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = "mcr-checkpoint-1"  # what training saves
EXPORT_FORMAT = "mcr-encoder-1"  # what `models.export` writes
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

_COPY_AGAIN = "download or copy it again"


@dataclass(frozen=True)
class Layout:
    """Where a kind of file keeps the encoder.

    name:       for people
    holder:     key of the file's dictionary that holds the tensors; "" = the file is the dictionary
    prefix:     what stands before torchvision's names
    ignored:    beginnings of names that belong to other parts than the encoder
    described:  the file says itself, under `encoder_config`, which network it is and what it sees
    """

    name: str
    holder: str
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    described: bool = False


# The first whose holder is in the file applies. Those that do not describe themselves all see
# images resized to 256, cropped to 224 and normalised as for ImageNet: `Preprocessing()`.
LAYOUTS = (
    Layout("mcr training checkpoint", "encoder", described=True),
    Layout(
        "upstream MCR training snapshot",
        "mcr",
        prefix="convnet.",
        ignored=("state_encoder.", "bc_trunk.", "bc_policy."),
    ),
    Layout("R3M model", "r3m", prefix="convnet.", ignored=("lang_enc.", "lang_rew.")),
    Layout("torchvision state dict", ""),
)

# What wrappers put before all names: (Distributed)DataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")


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


def read_weights(path: str | Path) -> Weights:
    """Read a weights file or an export's folder.

    Raises UserError when it is missing, damaged, of no known layout, or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path to the weights")
    try:
        if path.is_dir() or path.suffix == ".safetensors":
            return _read_export(path)
        return _read_torch(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


# --------------------------------------------------------------------------- kinds of files


def _read_export(path: Path) -> Weights:
    """An export: the folder, or the .safetensors in it."""
    folder, weights = (path, path / WEIGHTS_NAME) if path.is_dir() else (path.parent, path)
    for needed in (folder / CONFIG_NAME, weights):
        if not needed.is_file():
            raise UserError(
                f"there is no {needed.name} in the folder {folder.name}; give the folder that "
                "scripts/export.py wrote, or a checkpoint file"
            )
    _refuse_impostor(weights)
    try:
        tensors = load_file(weights)
    except safetensors.SafetensorError as error:
        raise UserError(f"{weights.name} is damaged ({error}); {_COPY_AGAIN}") from error
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{CONFIG_NAME} is not JSON ({error}); {_COPY_AGAIN}") from error
    ours = config.get("mcr") if isinstance(config, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != EXPORT_FORMAT:
        raise UserError(
            f"{CONFIG_NAME} describes no encoder of the format {EXPORT_FORMAT!r}; it is of another "
            "library or of another version of mcr"
        )
    description = _described(ours.get("encoder_config"))
    return Weights(path, "mcr export", _clean(tensors), *description, ours.get("training", {}))


def _read_torch(path: Path) -> Weights:
    """A file of `torch.save`: whichever entry of `LAYOUTS` it matches."""
    content = _unpickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
    layout = next(layout for layout in LAYOUTS if not layout.holder or layout.holder in content)
    held = content[layout.holder] if layout.holder else content
    if not (isinstance(held, Mapping) and held and all(map(_is_tensor_entry, held.items()))):
        keys = ", ".join(str(key) for key in list(content)[:5])
        raise UserError(f"it holds no weights in a layout known here (keys: {keys})")
    tensors = _clean(_select(held, layout))
    if not layout.described:
        return Weights(path, layout.name, tensors, identify_backbone(tensors), Preprocessing())
    if content.get("format") != CHECKPOINT_FORMAT:
        raise UserError(
            f"its format is {content.get('format')!r}, not {CHECKPOINT_FORMAT!r}: load it with the "
            "version of mcr that wrote it"
        )
    description = _described(content.get("encoder_config"))
    known = ("step", "config", "dataset", "versions")
    provenance = {key: content[key] for key in known if key in content}
    return Weights(path, layout.name, tensors, *description, provenance)


def _described(encoder_config: Any) -> tuple[str, Preprocessing]:
    backbone, preprocessing = Preprocessing.from_config(encoder_config)
    return require_choice("backbone", backbone, BACKBONES), preprocessing


def _unpickle(path: Path) -> Any:
    """`torch.load`, weights only, with every failure in one sentence."""
    _refuse_impostor(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(str(error))) from error
    except (RuntimeError, EOFError, LookupError) as error:  # what torch raises for damaged files
        if "TorchScript" in str(error):
            raise UserError(
                "it is a TorchScript program, not weights: save the model's state_dict() instead"
            ) from error
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
    # torch.save writes a zip file, or (before 1.6) pickles of protocol 2.
    if path.suffix != ".safetensors" and not begin.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise UserError("it is not a file of torch.save: give a .pth, .pt or .safetensors file")


# --------------------------------------------------------------------------- tensors


def _is_tensor_entry(entry: tuple[Any, Any]) -> bool:
    name, value = entry
    if not (isinstance(name, str) and isinstance(value, Tensor)):
        return False
    return value.layout == torch.strided and not value.is_quantized


def _select(held: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The encoder's tensors under torchvision's names; unknown names stay, to be refused later."""
    held = _unwrap(held)
    wanted = {name: t for name, t in held.items() if not name.startswith(layout.ignored)}
    return {name.removeprefix(layout.prefix): tensor for name, tensor in wanted.items()}


def _unwrap(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for wrapper in _WRAPPERS:
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
