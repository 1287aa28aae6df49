#!/usr/bin/env python
"""Turn a training checkpoint into an encoder to share.

    python scripts/export.py runs/mcr/checkpoints/step_00500000.pt my_encoder
    python scripts/export.py runs/mcr/checkpoints/step_00500000.pt my_encoder.pth
    python scripts/export.py my_encoder my_encoder.onnx
    python scripts/export.py runs/mcr/checkpoints/step_00500000.pt my_encoder --push me/my_encoder

A folder gets model.safetensors, config.json, a model card and the recipe; a .pth upstream's layout.
A .onnx (ONNX Runtime) or .pt2 (torch.export) runs without mcr: it takes uint8 images of the final
size and normalises them inside. CHECKPOINT is anything that mcr.load_model takes.
"""

from __future__ import annotations

import argparse

from mcr.errors import command_line
from mcr.release.export import export_encoder
from mcr.release.hub_upload import push_to_hub
from mcr.release.programs import PROGRAM_SUFFIXES


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what to export")
    parser.add_argument("out", metavar="OUT", help="a new folder, or a .pth, .onnx or .pt2 file")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--push", metavar="ORG/NAME", help="upload the folder to the Hugging Face Hub, too"
    )
    parser.add_argument("--private", action="store_true", help="with --push: for your eyes only")
    options = parser.parse_args()
    export = export_encoder(options.checkpoint, options.out, options.force)
    print(f"{export.path}: {export.backbone}, {export.num_tensors} tensors, checked by running it")
    print(f"embed_dim: {export.embed_dim}")
    print(f"sha256:    {export.sha256}")
    if export.path.suffix not in PROGRAM_SUFFIXES:
        print(f'load with: mcr.load_model("{export.path}")')
    if options.push:
        address = push_to_hub(export.path, options.push, options.private)
        print(f'uploaded:  mcr.load_model("{address}")')


if __name__ == "__main__":
    main()
