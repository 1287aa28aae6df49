"""mcr: manipulation-centric visual encoders, pretrained from robot data.

The public names, resolved when first used: `import mcr` costs nothing and imports no torch.

    encoder = mcr.load_model("mcr_resnet50.pth")  # frozen; raw images in, features [B, 2048] out
    data = mcr.open_data("bridge_dataset/1.0.0")  # robot data of any format
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcr.data.dataset import RobotData, open_data
    from mcr.data.tree_writing import write_episode
    from mcr.errors import UserError
    from mcr.models.catalogue import list_models
    from mcr.models.encoder import Encoder
    from mcr.models.fine_tuning import count_parameters, param_groups
    from mcr.models.loading import load_mcr, load_model
    from mcr.release.export import export_encoder
    from mcr.release.hub_upload import push_to_hub
    from mcr.release.verify import verify

__version__ = "0.2.0"
__all__ = [
    "Encoder",
    "RobotData",
    "UserError",
    "count_parameters",
    "export_encoder",
    "list_models",
    "load_mcr",
    "load_model",
    "open_data",
    "param_groups",
    "push_to_hub",
    "verify",
    "write_episode",
]

_HOMES = {
    "Encoder": "mcr.models.encoder",
    "RobotData": "mcr.data.dataset",
    "UserError": "mcr.errors",
    "count_parameters": "mcr.models.fine_tuning",
    "export_encoder": "mcr.release.export",
    "list_models": "mcr.models.catalogue",
    "load_mcr": "mcr.models.loading",
    "load_model": "mcr.models.loading",
    "open_data": "mcr.data.dataset",
    "param_groups": "mcr.models.fine_tuning",
    "push_to_hub": "mcr.release.hub_upload",
    "verify": "mcr.release.verify",
    "write_episode": "mcr.data.tree_writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mcr' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
