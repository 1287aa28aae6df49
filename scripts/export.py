"""Turn a training checkpoint into an encoder to share.

    python scripts/export.py runs/mcr/checkpoints/step_00500000.pt my_encoder
    python scripts/export.py runs/mcr/checkpoints/step_00500000.pt my_encoder.pth

The first writes a folder with model.safetensors, config.json and a model card; the second writes
upstream's layout. CHECKPOINT is anything that mcr.load_model reads.
"""

from __future__ import annotations

import argparse

from mcr.errors import command_line
from mcr.models.export import export_encoder


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="what to export")
    parser.add_argument("out", metavar="OUT", help="a new folder, or a file ending in .pth")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    options = parser.parse_args()
    export = export_encoder(options.checkpoint, options.out, options.force)
    print(
        f"{export.path}: {export.backbone}, {export.num_tensors} tensors, checked by loading again"
    )
    print(f"embed_dim: {export.embed_dim}")
    print(f"sha256:    {export.sha256}")
    print(f'load with: mcr.load_model("{export.path}")')


if __name__ == "__main__":
    main()
