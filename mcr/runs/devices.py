"""The choice of the device that a run computes on."""

from __future__ import annotations

import torch

from mcr.errors import UserError


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device called `name`: "auto" (a GPU if there is one, else the CPU), "cpu", ...

    local_rank: the number of this process on its machine, if each process has a GPU of its own
    Raises UserError if the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def count_gpus() -> int:
    """The number of GPUs that this process may use; CUDA_VISIBLE_DEVICES limits it."""
    return torch.cuda.device_count()
