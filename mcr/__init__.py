"""mcr: manipulation-centric visual encoders, pretrained from robot data.

The public names, resolved when first used: `import mcr` costs nothing and imports no torch.

    encoder = mcr.load_model("mcr_resnet50.pth")  # frozen; raw images in, features [B, 2048] out
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcr.errors import UserError
    from mcr.models.encoder import Encoder, load_mcr, load_model
    from mcr.models.export import export_encoder

__version__ = "0.1.0"
__all__ = ["Encoder", "UserError", "export_encoder", "load_mcr", "load_model"]

_HOMES = {
    "Encoder": "mcr.models.encoder",
    "UserError": "mcr.errors",
    "export_encoder": "mcr.models.export",
    "load_mcr": "mcr.models.encoder",
    "load_model": "mcr.models.encoder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mcr' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
