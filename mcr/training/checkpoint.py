"""Checkpoints: everything that a run needs to continue as if it had never stopped.

A checkpoint is written atomically. It holds only plain containers and tensors, so that it loads
with `weights_only=True`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcr.errors import UserError
from mcr.models.layouts import CHECKPOINT_FORMAT
from mcr.models.tensor_files import read_content
from mcr.runs.atomic import atomic_path

_NAME = re.compile(r"step_(\d+)\.pt$")


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Write `<folder>/step_<step>.pt` atomically and delete all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, step)
    # A file, because torch would write the temporary name of a path into it.
    with atomic_path(path) as partial, partial.open("wb") as file:
        torch.save({"format": CHECKPOINT_FORMAT, "step": step, **content}, file)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.search(path.name))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU. Raises UserError if it is damaged or of another kind."""
    try:
        content = read_content(path)
    except UserError as error:
        raise UserError(
            f"{path}: unreadable checkpoint ({error}); delete it to use an older one"
        ) from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path}: not a training checkpoint of the format {CHECKPOINT_FORMAT!r}")
    return content


def load_fitting(module: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Load the tensors whose name and shape `module` knows. Returns the names of its other ones."""
    own = module.state_dict()
    fitting = {n: t for n, t in tensors.items() if n in own and own[n].shape == t.shape}
    module.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())
