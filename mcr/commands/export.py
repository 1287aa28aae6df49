"""Convert a training checkpoint to an encoder to share.

    mcr export runs/mcr/checkpoints/step_00500000.pt my_encoder
    mcr export runs/mcr/checkpoints/step_00500000.pt my_encoder.pth
    mcr export runs/mcr/checkpoints/step_00500000.pt my_encoder --ema
    mcr export my_encoder my_encoder.onnx
    mcr export runs/mcr/checkpoints/step_00500000.pt my_encoder --push me/my_encoder

A folder holds model.safetensors, config.json, a model card and the recipe, and of the run neither
the command line nor folders. --push shows all of it and asks before it uploads. A .pth file has the
layout of MCR's released weights. A .onnx (ONNX Runtime) or .pt2 (torch.export) file runs without
mcr: it takes uint8 images of the final size and normalises them itself. CHECKPOINT is anything that
mcr.load_model takes.
"""

from __future__ import annotations

import argparse
import sys

from mcr.errors import UserError
from mcr.release.export import export_encoder
from mcr.release.hub_upload import describe_upload, push_to_hub
from mcr.release.programs import PROGRAM_SUFFIXES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what to export")
    parser.add_argument("out", metavar="OUT", help="a new folder, or a .pth, .onnx or .pt2 file")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--ema", action="store_true", help="export the average of the weights (model.ema)"
    )
    parser.add_argument(
        "--push", metavar="ORG/NAME", help="also upload the folder to the Hugging Face Hub"
    )
    parser.add_argument(
        "--private", action="store_true", help="with --push: make the repository private"
    )
    parser.add_argument(
        "--yes", action="store_true", help="with --push: upload without asking, after showing it"
    )


def run(options: argparse.Namespace) -> None:
    export = export_encoder(options.checkpoint, options.out, options.force, options.ema)
    print(f"{export.path}: {export.backbone}, {export.num_tensors} tensors, checked by running it")
    print(f"embed_dim: {export.embed_dim}")
    print(f"sha256:    {export.sha256}")
    if export.path.suffix not in PROGRAM_SUFFIXES:
        print(f'load with: mcr.load_model("{export.path}")')
    if options.push:
        print(f"\n{describe_upload(export.path, options.push, options.private)}", flush=True)
        if not options.yes and not _agrees():
            raise UserError(f"nothing was uploaded; {export.path} is kept")
        address = push_to_hub(export.path, options.push, options.private)
        print(f'uploaded:  mcr.load_model("{address}")')


def _agrees() -> bool:
    """Ask the person at the terminal. Raises UserError if there is none."""
    if not sys.stdin.isatty():
        raise UserError("nothing was uploaded: look at what is shown above and add --yes")
    return input("upload this? [y/N] ").strip().lower() in ("y", "yes")
