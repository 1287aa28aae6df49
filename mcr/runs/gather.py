"""Rows of all processes, with gradient: how one process sees the batch of the others.

Everything that an objective or a metric needs of clips that another process reads comes through
here. The contrasts call it (`contrast.gather_candidates`), so do metrics over the whole batch and
batch normalisation; one process alone gets its own rows back.

Gradients are those of the **sum** of all processes' losses: what other processes did with a row
comes back to the process that made it. Averaged over processes, as DistributedDataParallel does,
they are the gradients of the mean loss, which is what one process with all rows would compute.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Processes that share the batch; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """(the rows of all processes in the order of their ranks, where this process's begin).

    rows: [N, ...] of the same shape on every process -> [N * processes, ...]
    """
    if num_processes() == 1:
        return rows, 0
    return _GatherRows.apply(rows), dist.get_rank() * len(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        gathered = [torch.empty_like(rows) for _ in range(num_processes())]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(num_processes())[dist.get_rank()]
