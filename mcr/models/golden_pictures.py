"""Golden pictures: four frames of the sample data that ship with `mcr`, to try an encoder on.

They are PNGs, which decode to the same pixels on every machine. A network that was written to a
file is compared with its encoder on them (`models.onnx_file`, `release.programs`), and an export
stores their features (`release.golden_features`).
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import mcr


def golden_pictures() -> dict[str, Image.Image]:
    """Return {name: RGB picture of 180 x 320 pixels}, sorted by name."""
    package = Path(mcr.__file__).parent
    folder = package / "golden"  # of an installed package
    if not folder.is_dir():
        folder = package.parent / "resources" / "golden"  # of a source tree
    return {path.stem: Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))}
