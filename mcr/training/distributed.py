"""The processes of a run: the rank of this one, and what they send each other besides gradients.

torchrun starts the processes and describes each in its environment variables. A run without
torchrun has one process and no process group. The methods of `World` then send nothing, so that the
calling code is the same. DistributedDataParallel averages gradients, and `runs.gather` collects
rows from other processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mcr.errors import UserError

T = TypeVar("T")

_PATIENCE = timedelta(days=2)  # how long processes wait while one of them indexes a data set


def _check_restarts() -> None:
    """Raise UserError if torchrun is to restart processes in a way that may hang.

    It keeps one store of addresses over all restarts, so that the restarted processes may look for
    the dead ones and hang (pytorch issue 135712).
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UserError(
            "torchrun --max-restarts may hang when it restarts: export "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before it, as `mcr train` does, and use "
            "--standalone or --rdzv-backend c10d"
        )


@dataclass(frozen=True)
class World:
    """The processes of a run, seen by one of them.

    rank:       0 .. size - 1; rank 0 alone writes and prints
    local_rank: rank among the processes of this machine, which is the number of its GPU
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> World:
        """Read torchrun's environment variables; without them, one process is alone."""
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        return cls(*(int(os.environ.get(name, default)) for name, default in names.items()))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Connect the processes inside the block: by NCCL between GPUs, by gloo between CPUs.

        An exception leaves the process group as it is, because destroying it would wait for other
        processes. They notice when this process exits.
        """
        if self.size == 1:
            yield
            return
        _check_restarts()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=self.rank, world_size=self.size)
        yield
        dist.destroy_process_group()

    def say(self, text: str) -> None:
        """Print on rank 0 only."""
        if self.is_main:
            print(text)

    def in_turn(self, act: Callable[[], T]) -> T:
        """Call `act()` on rank 0, then on the first process of each machine, then on the rest.

        Processes therefore find what an earlier one has built, on a shared disk or on the disk of
        their machine. Each process returns its own result. All raise the UserError of any of them.
        """
        if self.size == 1:
            return act()
        group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
        my_turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for turn in range(3):
            error = ""
            if turn == my_turn:
                try:
                    result = act()
                except UserError as problem:
                    error = str(problem)
            errors = [""] * self.size
            dist.all_gather_object(errors, error, group)
            if any(errors):
                raise UserError(next(filter(None, errors)))
        return result

    def of_main(self, value: T) -> T:
        """Return the value that rank 0 passed, on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def mean(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean of each scalar over processes. All must pass the same names."""
        if self.size == 1:
            return metrics
        values = torch.stack([value.float() for value in metrics.values()])
        dist.all_reduce(values)
        return dict(zip(metrics, values / self.size, strict=True))

    def any(self, flags: Tensor) -> Tensor:
        """Return flags, float [N], as 1 where any process passed 1. A GPU's host does not wait."""
        if self.size > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return flags
