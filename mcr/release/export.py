"""Export: a checkpoint -> an encoder to share, with its preprocessing and its history.

An export is a folder in the Hugging Face way (model.safetensors, config.json, README.md, and the
recipe that trained it), a .pth in upstream's layout, or a program that runs without `mcr` (.onnx,
.pt2). It is loaded again and compared with the encoder before it gets its name.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import mcr
from mcr.errors import UserError
from mcr.models.backbones import BACKBONES
from mcr.models.encoder import Encoder
from mcr.models.layouts import (
    CONFIG_NAME,
    EXPORT_FORMAT,
    WEIGHTS_NAME,
    Weights,
    read_average,
)
from mcr.models.loading import build_encoder, load_model
from mcr.models.preprocessing import Preprocessing
from mcr.models.sources import read_source
from mcr.models.tensor_files import sha256
from mcr.release.golden_features import golden_features, golden_record
from mcr.release.model_card import CARD_NAME, RECIPE_NAME, model_card, recipe
from mcr.release.programs import PROGRAM_SUFFIXES, write_program
from mcr.release.publication import public_facts
from mcr.runs.atomic import atomic_path, reserve
from mcr.runs.locks import exclusive

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


def export_encoder(
    checkpoint: str | Path, out: str | Path, force: bool = False, ema: bool = False
) -> Export:
    """Write the encoder of `checkpoint`, which is anything that `load_model` reads, to `out`.

    out:   a new folder;
           or a file ending in .pth, for upstream's layout: torchvision's state dict without `fc`.
           It cannot say how pictures must be prepared, so that must be the default;
           or a file ending in .onnx or .pt2, for a program: see `release.programs`
    force: replace an earlier export
    ema:   export the average of the weights that training kept (`model.ema`), not the last ones

    Raises UserError if `out` exists or cannot hold this encoder, if the checkpoint cannot be
    loaded, or if its features are not finite.
    """
    out = Path(os.path.abspath(Path(out).expanduser()))
    weights = _with_run(read_source(checkpoint))
    weights = replace(weights, provenance=public_facts(weights.provenance))
    if ema:
        weights = _averaged(weights)
    _check_target(out, weights, force)
    encoder = build_encoder(weights)
    golden = golden_features(encoder)
    if not golden.isfinite().all():
        raise UserError(
            f"{weights.path}: the features of a test picture are not finite: training has "
            "diverged; take an earlier checkpoint"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with _alone(out, weights, force), atomic_path(out, replace_folder=True) as partial:
        if out.suffix in PROGRAM_SUFFIXES:
            write_program(partial, out.suffix, encoder, _config(weights, encoder))
            digest = sha256(partial)
        elif out.suffix == ".pth":
            with partial.open("wb") as file:  # torch.save would write the temporary name into it
                torch.save(weights.tensors, file)
            _require_same(load_model(partial), encoder, golden)
            digest = sha256(partial)
        else:
            digest = _write_folder(partial, out.name, weights, encoder, golden)
            _require_same(load_model(partial), encoder, golden)
    return Export(out, weights.backbone, len(weights.tensors), encoder.embed_dim, digest)


@contextlib.contextmanager
def _alone(out: Path, weights: Weights, force: bool) -> Iterator[None]:
    """Keep other exports away from `out`, and see whether one has come before this one."""
    with exclusive(out, patience_s=0, advice="choose another name"):
        _check_target(out, weights, force)
        yield


def _check_target(out: Path, weights: Weights, force: bool) -> None:
    if out.suffix in _OTHER_SUFFIXES:
        raise UserError(
            f"{out}: give a folder (safetensors and its config), or a .pth, .onnx or .pt2 file"
        )
    if out.suffix == ".pth" and weights.backbone not in BACKBONES:
        raise UserError(
            f"{out}: a .pth is for torchvision's networks, not for {weights.backbone}; export to a "
            "folder instead"
        )
    if out.suffix == ".pth" and "fc.weight" in weights.tensors:
        raise UserError(
            f"{out}: upstream's layout leaves out the last layer `fc`, which is a part of "
            f"{weights.backbone}'s features; export to a folder instead"
        )
    if out.suffix == ".pth" and weights.preprocessing != Preprocessing():
        raise UserError(
            f"{out}: a .pth cannot say that this encoder needs {weights.preprocessing}, so its "
            "users would prepare pictures wrongly; export to a folder instead"
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"{out}: exists already; choose another name or add --force")
    if out.is_dir() == (out.suffix in (".pth", *PROGRAM_SUFFIXES)):
        raise UserError(f"{out}: is a {'folder' if out.is_dir() else 'file'}; choose another name")
    if out.is_dir() and (others := {path.name for path in out.iterdir()} - set(EXPORT_FILES)):
        raise UserError(
            f"{out}: holds {', '.join(sorted(others)[:3])}, which is no part of an export and "
            "would be deleted; choose another folder"
        )


def _write_folder(
    folder: Path, name: str, weights: Weights, encoder: Encoder, golden: Tensor
) -> str:
    """Write the files of an export that will be called `name`; return the weights' SHA-256."""
    folder.mkdir()
    # On a full disk safetensors gives an error that is none of the system's.
    reserve(folder / WEIGHTS_NAME, sum(tensor.nbytes for tensor in weights.tensors.values()))
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
    return digest


def _config(weights: Weights, encoder: Encoder) -> dict[str, Any]:
    """Return config.json: what timm reads, and under `mcr` what `load_model` reads."""
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


def _with_run(weights: Weights) -> Weights:
    """Add to a checkpoint's provenance what is in the folder of its run, if it still lies there.

    RUN/checkpoints/step_....pt   the checkpoint
    RUN/metrics.jsonl             the last held-out metrics up to its step
    RUN/versions.json             the hardware
    """
    step, folder = weights.provenance.get("step"), weights.path.resolve().parent
    if step is None or folder.name != "checkpoints":
        return weights
    run = folder.parent
    found: dict[str, Any] = {}
    if (run / "metrics.jsonl").is_file():
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith("\n")]  # complete ones
        held_out = [entry for entry in entries if entry["split"] == "val" and entry["step"] <= step]
        found |= {"results": held_out[-1]} if held_out else {}
    if (run / "versions.json").is_file():
        versions = json.loads((run / "versions.json").read_text(encoding="utf-8"))
        found |= {"hardware": versions["device"]} if "device" in versions else {}
    return replace(weights, provenance=weights.provenance | found)


def _averaged(weights: Weights) -> Weights:
    """The average of the weights, without the results, which are those of the last weights."""
    provenance = {key: v for key, v in weights.provenance.items() if key != "results"}
    provenance["weights"] = "exponential moving average"
    return replace(weights, tensors=read_average(weights.path), provenance=provenance)


def _require_same(written: Encoder, encoder: Encoder, golden: Tensor) -> None:
    """Raise RuntimeError unless tensors and golden features are the same after writing."""
    tensors = zip(written.state_dict().values(), encoder.state_dict().values(), strict=True)
    same_tensors = all(torch.equal(a, b) for a, b in tensors)
    if not same_tensors or not torch.allclose(golden_features(written), golden, 1e-4, 1e-5):
        raise RuntimeError("the written encoder differs from the checkpoint's")
