"""Gathering rows from all processes, with gradients.

Contrastive losses, metrics over the whole batch and batch normalisation need the rows that other
processes compute. A run of one process gets its own rows back.

The gradient of a row is that of the **sum** of the losses of all processes, which all use the row.
DistributedDataParallel then averages over processes, which gives the gradient of the mean loss: the
same that one process with all rows would compute.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Return the number of processes that share the batch: 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Gather the rows of all processes.

    rows: [N, ...], of the same shape on every process
    Returns (all rows in the order of ranks, [N * processes, ...]; where those of this process
    begin).
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
