"""Export: a checkpoint -> an encoder to share, with its preprocessing and its history.

A folder in the Hugging Face way (model.safetensors, config.json, README.md), or upstream's bare
.pth. Nothing half-written is ever left under the asked name, and what was written is loaded again
and compared before it gets that name. Called by `scripts/export.py` and by tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import mcr
from mcr.errors import UserError
from mcr.models.encoder import Encoder, build_encoder, load_model
from mcr.models.layouts import CONFIG_NAME, EXPORT_FORMAT, WEIGHTS_NAME, Weights, read_weights
from mcr.models.preprocessing import Preprocessing

CARD_NAME = "README.md"
_FILES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME)
_OTHER_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".onnx")


@dataclass(frozen=True)
class Export:
    """What was written. sha256 is that of the weights file."""

    path: Path
    backbone: str
    num_tensors: int
    embed_dim: int
    sha256: str


def export_encoder(checkpoint: str | Path, out: str | Path, force: bool = False) -> Export:
    """Write the encoder of `checkpoint` (anything `load_model` reads) to `out`.

    out: a folder to make, or a file ending in .pth for upstream's layout: torchvision's state dict
        without `fc`, which cannot say how images must be prepared and so is only for the default.
    force: replace an earlier export.

    Raises UserError if `out` exists, is no place for an export, or the checkpoint cannot be loaded.
    """
    out = Path(os.path.abspath(Path(out).expanduser()))
    weights = read_weights(checkpoint)
    _check_target(out, weights, force)
    encoder = build_encoder(weights)
    partial = out.with_name(f".partial-{out.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)  # of an export that was killed
    try:
        if out.suffix == ".pth":
            written = _write_pth(partial, weights)
        else:
            written = _write_folder(partial, out.name, weights, encoder)
        _require_same(load_model(partial), encoder, weights.path)
        digest = _sha256(written)
        _replace(partial, out)
    finally:
        _remove(partial)
    return Export(out, weights.backbone, len(weights.tensors), encoder.embed_dim, digest)


# --------------------------------------------------------------------------- where to


def _check_target(out: Path, weights: Weights, force: bool) -> None:
    if out.suffix in _OTHER_SUFFIXES:
        raise UserError(f"{out}: give a folder (safetensors and its config) or a .pth file")
    if out.suffix == ".pth" and weights.preprocessing != Preprocessing():
        raise UserError(
            f"{out}: a .pth cannot say that this encoder sees {weights.preprocessing}, so "
            "everybody would feed it wrongly; export to a folder instead"
        )
    if not out.exists() or _is_empty_folder(out):
        return
    if not force:
        raise UserError(f"{out}: exists already; choose another name or add --force")
    if out.is_dir() == (out.suffix == ".pth"):
        raise UserError(f"{out}: is a {'folder' if out.is_dir() else 'file'}; choose another name")
    if out.is_dir() and (others := {path.name for path in out.iterdir()} - set(_FILES)):
        raise UserError(
            f"{out}: holds {', '.join(sorted(others)[:3])}, which is no part of an export and "
            "would be lost; choose another folder"
        )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _replace(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; a folder in the way steps aside first and is then deleted."""
    if not out.is_dir():
        partial.replace(out)
    else:
        old = out.with_name(f".replaced-{out.name}")
        _remove(old)
        out.rename(old)
        partial.rename(out)
        _remove(old)
    _sync(out.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------- what


def _write_pth(path: Path, weights: Weights) -> Path:
    with path.open("wb") as file:  # not by name: torch.save puts the name into the file
        torch.save(weights.tensors, file)
    _sync(path)
    return path


def _write_folder(folder: Path, name: str, weights: Weights, encoder: Encoder) -> Path:
    folder.mkdir()
    save_file(weights.tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    config = _config(weights, encoder)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    card = model_card(name, weights, encoder, _sha256(folder / WEIGHTS_NAME))
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    for file in _FILES:
        _sync(folder / file)
    _sync(folder)
    return folder / WEIGHTS_NAME


def _config(weights: Weights, encoder: Encoder) -> dict[str, Any]:
    """config.json: what timm reads, and under `mcr` what `load_model` reads."""
    return {
        "architecture": weights.backbone,
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        "pretrained_cfg": encoder.pretrained_cfg,
        "mcr": {
            "format": EXPORT_FORMAT,
            "version": mcr.__version__,
            "encoder_config": weights.preprocessing.encoder_config(weights.backbone),
            "training": weights.provenance,
        },
    }


def _require_same(written: Encoder, encoder: Encoder, source: Path) -> None:
    """Tensors and the features of a picture of coloured ramps must survive the round trip."""
    ramp = torch.linspace(0, 1, 240)
    picture = torch.stack(
        [ramp.expand(320, 240), ramp.flip(0).expand(320, 240), ramp.expand(320, 240) ** 2]
    )
    with torch.no_grad():
        before, after = encoder(picture), written(picture)
    if not before.isfinite().all():
        raise UserError(
            f"{source}: the features of a test picture are not finite: training has diverged; "
            "take an earlier checkpoint"
        )
    tensors = zip(written.state_dict().values(), encoder.state_dict().values(), strict=True)
    same_tensors = all(torch.equal(a, b) for a, b in tensors)
    if not same_tensors or not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
        raise RuntimeError("the written encoder is not the same as the checkpoint's")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --------------------------------------------------------------------------- model card


def model_card(name: str, weights: Weights, encoder: Encoder, sha256: str) -> str:
    """README.md of an export, Markdown with the Hub's header."""
    training = weights.provenance
    dataset = training.get("dataset", {})
    seen = weights.preprocessing
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    recipe = training.get("config", {})
    return f"""---
library_name: mcr
pipeline_tag: image-feature-extraction
tags: [robotics, representation-learning, {weights.backbone}]
---
# {name}

A visual encoder for robot manipulation: {weights.backbone}, {parameters:,} parameters,
{encoder.embed_dim} features per picture.

## Use

```python
import mcr

encoder = mcr.load_model("{name}")  # frozen; takes raw pictures: PIL, uint8, or float in [0, 1]
features = encoder(images)  # [B, {encoder.embed_dim}]
```

Without `mcr`: resize the shorter side to {seen.resize} ({seen.interpolation}, antialiased), crop
the centre {seen.image_size} x {seen.image_size}, scale to [0, 1], subtract {list(seen.mean)},
divide by {list(seen.std)}; the tensors have torchvision's names.

## Training

| | |
|---|---|
| data | {dataset.get("name", _UNKNOWN)} |
| data fingerprint | {dataset.get("fingerprint", _UNKNOWN)} |
| episodes | {dataset.get("episodes", _UNKNOWN)} |
| steps | {training.get("step", _UNKNOWN)} |
| losses and weights | {_listed(recipe.get("loss_weights", {}))} |
| read from | {weights.layout} `{weights.path.name}` |
| software | {_listed(training.get("versions", {}))} |
| sha256 of the weights | {sha256} |

<details><summary>Complete configuration</summary>

```json
{json.dumps(recipe, indent=2)}
```

</details>

## Licence

The code is MIT. Weights carry the terms of the data that they were trained on; DROID is CC BY 4.0.
"""


_UNKNOWN = "not recorded in the file"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or _UNKNOWN
