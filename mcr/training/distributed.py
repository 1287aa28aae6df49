"""The processes of a run: which of them this one is, and the few things they have to agree on.

torchrun starts them and tells each its place in the environment. A run without torchrun is a run of
one process, which needs no process group: everything here then returns what it was given, and the
code around it is the same. Only `train.py` and `engine.py` call this. Gradients are averaged by
DistributedDataParallel, rows of other processes come through `runs.gather`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mcr.errors import UserError

T = TypeVar("T")

_PATIENCE = timedelta(days=2)  # while one process indexes a data set, the others wait


def _check_restarts() -> None:
    """torchrun keeps one store of addresses over all its restarts, so that the restarted processes
    may look for the dead ones and hang (pytorch issue 135712). Better to say so at the start."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UserError(
            "torchrun --max-restarts may hang when it restarts: export "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before it, as scripts/train_mcr.sh does, and use "
            "--standalone or --rdzv-backend c10d"
        )


@dataclass(frozen=True)
class World:
    """The processes of a run, seen by one of them.

    rank:       0 .. size - 1; rank 0 is the one that writes and talks
    local_rank: the same among the processes of this machine: the number of its GPU
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> World:
        """As torchrun's variables say; alone without them."""
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        return cls(*(int(os.environ.get(name, default)) for name, default in names.items()))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Processes can talk inside: by NCCL between GPUs, by gloo between CPUs.

        Left by an exception, the connections are not taken down in order, because the others may be
        waiting in them: this process ends, and its end is what wakes them.
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
        """Print once, not once per process."""
        if self.is_main:
            print(text)

    def in_turn(self, act: Callable[[], T]) -> T:
        """`act()` by rank 0 first, then by the first process of each machine, then by the rest.

        What the first one builds, on a disk that all share or each machine has, the others find.
        Each returns its own result; a UserError of one is raised by all.
        """
        if self.size == 1:
            return act()
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        my_turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for turn in range(3):
            error = ""
            if turn == my_turn:
                try:
                    result = act()
                except UserError as problem:
                    error = str(problem)
            errors = [""] * self.size
            dist.all_gather_object(errors, error, group)  # type: ignore[arg-type]
            if any(errors):
                raise UserError(next(filter(None, errors)))
        return result

    def of_main(self, value: T) -> T:
        """What rank 0 passed, on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def mean(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean of each scalar over processes, by one message; all must pass the same names."""
        if self.size == 1:
            return metrics
        values = torch.stack([value.float() for value in metrics.values()])
        dist.all_reduce(values)
        return dict(zip(metrics, values / self.size, strict=True))

    def any(self, flags: Tensor) -> Tensor:
        """Where flags, float [N] of 0 and 1, is 1 on any process; not waited for on a GPU."""
        if self.size > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return flags
