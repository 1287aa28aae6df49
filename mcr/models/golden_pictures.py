"""Golden pictures: four frames of the embedded sample data, which ship with `mcr`.

They are PNGs, because those decode to the same pixels everywhere. Programs are compared with
encoders on them (`models.onnx_file`), and exports note their features (`release.golden`).
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import mcr


def golden_pictures() -> dict[str, Image.Image]:
    """Name -> RGB picture, 180 x 320, in the order of their names."""
    return {path.stem: Image.open(path).convert("RGB") for path in sorted(_folder().glob("*.png"))}


def _folder() -> Path:
    """Inside the installed package, or `resources/golden/` of a source tree."""
    package = Path(mcr.__file__).parent
    installed = package / "golden"
    return installed if installed.is_dir() else package.parent / "resources" / "golden"
