"""Export: a checkpoint -> an encoder to share, with its preprocessing and its history.

A folder in the Hugging Face way (model.safetensors, config.json, README.md, and the recipe that
trained it), upstream's bare .pth, or a program that runs without `mcr` (.onnx, .pt2). Nothing
half-written is ever left under the asked name, and what was written is loaded again and compared
before it gets that name. Called by `scripts/export.py` and by tests.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import mcr
from mcr.errors import UserError
from mcr.models.backbones import BACKBONES
from mcr.models.catalogue import identify, sha256
from mcr.models.encoder import Encoder
from mcr.models.layouts import CONFIG_NAME, EXPORT_FORMAT, WEIGHTS_NAME, Weights
from mcr.models.loading import build_encoder, load_model
from mcr.models.preprocessing import Preprocessing
from mcr.models.sources import read_source
from mcr.release.golden import golden_features, golden_record
from mcr.release.programs import PROGRAM_SUFFIXES, write_program

CARD_NAME = "README.md"
RECIPE_NAME = "recipe.yaml"
EXPORT_FILES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME, RECIPE_NAME)
_OTHER_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Export:
    """What was written. sha256 is that of the file with the weights."""

    path: Path
    backbone: str
    num_tensors: int
    embed_dim: int
    sha256: str


def export_encoder(checkpoint: str | Path, out: str | Path, force: bool = False) -> Export:
    """Write the encoder of `checkpoint` (anything `load_model` reads) to `out`.

    out: a folder to make; or a file ending in .pth for upstream's layout: torchvision's state dict
        without `fc`, which cannot say how images must be prepared and so is only for the default;
        or a program (`release.programs`) for ONNX Runtime, .onnx, or of torch.export, .pt2.
    force: replace an earlier export.

    Raises UserError if `out` exists, is no place for an export, or the checkpoint cannot be loaded.
    """
    out = Path(os.path.abspath(Path(out).expanduser()))
    weights = _with_run(read_source(checkpoint))
    _check_target(out, weights, force)
    encoder = build_encoder(weights)
    golden = _finite_golden_features(encoder, weights.path)
    partial = out.with_name(f".partial-{out.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)  # of an export that was killed
    try:
        if out.suffix in PROGRAM_SUFFIXES:
            written = partial
            write_program(partial, encoder, _config(weights, encoder))
            _sync(partial)
        elif out.suffix == ".pth":
            written = _write_pth(partial, weights)
            _require_same(load_model(partial), encoder, golden)
        else:
            written = _write_folder(partial, out.name, weights, encoder, golden)
            _require_same(load_model(partial), encoder, golden)
        digest = sha256(written)
        _replace(partial, out)
    finally:
        _remove(partial)
    return Export(out, weights.backbone, len(weights.tensors), encoder.embed_dim, digest)


# --------------------------------------------------------------------------- where to


def _check_target(out: Path, weights: Weights, force: bool) -> None:
    if out.suffix in _OTHER_SUFFIXES:
        raise UserError(
            f"{out}: give a folder (safetensors and its config), or a .pth, .onnx or .pt2 file"
        )
    if out.suffix == ".pth" and weights.backbone not in BACKBONES:
        raise UserError(
            f"{out}: a .pth is for torchvision's networks, this is {weights.backbone}; export to a "
            "folder instead"
        )
    if out.suffix == ".pth" and weights.preprocessing != Preprocessing():
        raise UserError(
            f"{out}: a .pth cannot say that this encoder sees {weights.preprocessing}, so "
            "everybody would feed it wrongly; export to a folder instead"
        )
    if not out.exists() or _is_empty_folder(out):
        return
    if not force:
        raise UserError(f"{out}: exists already; choose another name or add --force")
    if out.is_dir() == (out.suffix in (".pth", *PROGRAM_SUFFIXES)):
        raise UserError(f"{out}: is a {'folder' if out.is_dir() else 'file'}; choose another name")
    if out.is_dir() and (others := {path.name for path in out.iterdir()} - set(EXPORT_FILES)):
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


def _write_folder(
    folder: Path, name: str, weights: Weights, encoder: Encoder, golden: Tensor
) -> Path:
    folder.mkdir()
    save_file(weights.tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    digest = sha256(folder / WEIGHTS_NAME)
    config = _config(weights, encoder)
    config["mcr"] |= {"weights_sha256": digest, "golden": golden_record(golden)}
    texts = {
        CONFIG_NAME: json.dumps(config, indent=2) + "\n",
        CARD_NAME: model_card(name, weights, encoder, digest),
    }
    if "config" in weights.provenance:
        texts[RECIPE_NAME] = recipe(weights.provenance["config"])
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        _sync(path)
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


def recipe(config: dict[str, Any]) -> str:
    """A run's complete config as a recipe for `scripts/train_mcr.sh`: JSON, which is YAML too."""
    return json.dumps({"defaults": ["config", "_self_"], **config}, indent=2) + "\n"


def _with_run(weights: Weights) -> Weights:
    """Add what the run's folder knows and its checkpoint does not, where both still lie together.

    RUN/checkpoints/step_....pt; RUN/metrics.jsonl: the last held-out metrics up to that step;
    RUN/launch.json: command and hardware.
    """
    step = weights.provenance.get("step")
    run = weights.path.resolve().parents[1]
    if step is None or weights.path.resolve().parent.name != "checkpoints":
        return weights
    found: dict[str, Any] = {}
    if (run / "metrics.jsonl").is_file():
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith("\n")]  # whole ones
        held_out = [entry for entry in entries if entry["split"] == "val" and entry["step"] <= step]
        found |= {"results": held_out[-1]} if held_out else {}
    if (run / "launch.json").is_file():
        found["launch"] = json.loads((run / "launch.json").read_text(encoding="utf-8"))
    return replace(weights, provenance=weights.provenance | found)


def _finite_golden_features(encoder: Encoder, source: Path) -> Tensor:
    features = golden_features(encoder)
    if not features.isfinite().all():
        raise UserError(
            f"{source}: the features of a test picture are not finite: training has diverged; "
            "take an earlier checkpoint"
        )
    return features


def _require_same(written: Encoder, encoder: Encoder, golden: Tensor) -> None:
    """Tensors and the features of the golden pictures must survive the round trip."""
    tensors = zip(written.state_dict().values(), encoder.state_dict().values(), strict=True)
    same_tensors = all(torch.equal(a, b) for a, b in tensors)
    if not same_tensors or not torch.allclose(golden_features(written), golden, 1e-4, 1e-5):
        raise RuntimeError("the written encoder is not the same as the checkpoint's")


# --------------------------------------------------------------------------- model card


def model_card(name: str, weights: Weights, encoder: Encoder, digest: str) -> str:
    """README.md of an export, Markdown with the Hub's header. digest: SHA-256 of the weights."""
    seen = weights.preprocessing
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return f"""---
library_name: mcr
pipeline_tag: image-feature-extraction
license: other
license_name: see-licences-below
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
print(mcr.verify("{name}"))  # is it still what was exported?
```

Without `mcr`: resize the shorter side to {seen.resize} ({seen.interpolation}, antialiased), crop
the centre {seen.image_size} x {seen.image_size}, scale to [0, 1], subtract {list(seen.mean)},
divide by {list(seen.std)}; the tensors have torchvision's names.

## Training

{_training_table(weights, digest)}
{_results_section(weights.provenance.get("results", {}))}
{_reproduction_section(name, weights.provenance)}
## Licences

{_licence_table(weights)}
"""


_UNKNOWN = "not recorded in the file"


def _training_table(weights: Weights, digest: str) -> str:
    training = weights.provenance
    dataset, config = training.get("dataset", {}), training.get("config", {})
    launch = training.get("launch", {})
    return _table(
        {
            "data": dataset.get("name", _UNKNOWN),
            "data.root": config.get("data", {}).get("root", _UNKNOWN),
            "data fingerprint": dataset.get("fingerprint", _UNKNOWN),
            "episodes": dataset.get("episodes", _UNKNOWN),
            "filters of episodes": _listed(config.get("data", {}).get("selection", {})),
            "steps": training.get("step", _UNKNOWN),
            "losses and weights": _listed(config.get("loss_weights", {})),
            "started as": f"`{launch['command']}`" if "command" in launch else _UNKNOWN,
            "hardware": launch.get("hardware", _UNKNOWN),
            "read from": f"{weights.layout} `{weights.path.name}`",
            "software": _listed(training.get("versions", {})),
            "sha256 of the weights": digest,
        }
    )


def _results_section(results: dict[str, Any]) -> str:
    if not results:
        return ""
    metrics = {key: f"{value:.4g}" for key, value in results.items() if key != "split"}
    return f"## Results\n\nOn held-out episodes, at the last validation:\n\n{_table(metrics)}"


def _reproduction_section(name: str, training: dict[str, Any]) -> str:
    if "config" not in training:
        return ""
    return f"""## Train it again

The complete configuration is in `{RECIPE_NAME}`. In a clone of `mcr`, version
{training.get("versions", {}).get("mcr", _UNKNOWN)}, with the same data:

```bash
bash scripts/train_mcr.sh --config-path "$PWD/{name}" --config-name recipe \\
    data.root=DATA run_dir=runs/again
```
"""


def _licence_table(weights: Weights) -> str:
    published = identify(sha256(weights.path)) if weights.path.is_file() else None
    if published:
        return _table(
            {
                "published as": f"{published.name} (arXiv {published.paper})",
                "code": published.code_licence,
                "weights": published.weights_licence,
                "data": published.data,
            }
        )
    return _table(
        {
            "code": "MIT",
            "weights": "the terms of the data that they were trained on",
            "data": "its publisher's; DROID is CC BY 4.0",
        }
    )


def _table(rows: dict[str, Any]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or _UNKNOWN
