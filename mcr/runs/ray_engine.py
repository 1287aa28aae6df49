"""Work on a Ray cluster: a function mapped over items, by all cores of all nodes.

The only place that knows Ray (`pip install 'mcr[ray]'`). There is nothing of robots here: what is
mapped is `extract.py`'s and `index.py`'s, the same functions that a pool of processes runs. Data
sets and outputs must lie on a file system that all nodes see under the same paths; the package
`mcr` itself travels to them.

A function must leave the world right when it is killed anywhere and run again, for so does Ray: the
work of a lost process or node is done elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mcr
from mcr.errors import UserError, import_extra

ray = import_extra("ray", "ray")

# Of one item, when its process or node dies. Endless retries would hide an item that kills.
_MAX_RETRIES = 5


@contextlib.contextmanager
def ray_cluster(reassurance: str = "") -> Iterator[None]:
    """A connection to the cluster at $RAY_ADDRESS, or that of this machine, or a new one here.

    Leaving it ends what is not done. A UserError or system error of a call, work that killed its
    process every time, and Ctrl-C leave it as a UserError that ends with `reassurance`.
    """
    _connect()
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise  # a defect of ours, with Ray's account of it
        raise UserError(f"{error.cause}{reassurance}") from error
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.NodeDiedError,
    ) as error:
        raise UserError(
            f"one piece of work lost its process {_MAX_RETRIES + 1} times, by the system if memory "
            f"ran out (then give the nodes fewer cores: ray start --num-cpus){reassurance}"
        ) from error
    except KeyboardInterrupt:
        raise UserError(f"interrupted{reassurance}") from None
    finally:
        ray.shutdown()  # Ray ends a program's work with it; ray.cancel may crash in Ray 2.60


def ray_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`function` of each item, in order, inside `ray_cluster`. What a call raises is raised as soon
    as it is known. Results that are ready before their turn wait in this process.
    """
    ready: dict[int, Any] = {}
    due = 0
    for position, result in ray_completed(function, items):
        ready[position] = result
        while due in ready:
            yield ready.pop(due)
            due += 1


def ray_completed(
    function: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[tuple[int, Any]]:
    """(position, function of the item) as they are done, in any order, inside `ray_cluster`.

    Only so many items are on their way that every core has its next one waiting: memory does not
    grow with their number, and nodes that join later get their share.
    """
    remote = ray.remote(_say_where).options(name=function.__name__, max_retries=_MAX_RETRIES)
    numbered = enumerate(items)
    running: dict[Any, int] = {}  # reference to a result to be -> position of its item
    while True:
        room = 2 * _num_cores() - len(running)
        for position, item in itertools.islice(numbered, max(0, room)):
            running[remote.remote(function, item)] = position
        if not running:
            return
        (done,), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(done), ray.get(done)


def _connect() -> None:
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports to nobody
    ray.init(
        runtime_env={"py_modules": [str(Path(mcr.__file__).parent)]},
        logging_level="WARNING",
        log_to_driver=False,
    )


def _check_address(address: str) -> None:
    """Raise UserError if nobody answers at host:port; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # none given, or "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start one with "
            "ray start --head, or unset RAY_ADDRESS"
        ) from error


def _num_cores() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 0)))


def _say_where(function: Callable[[Any], Any], item: Any) -> Any:
    """`function(item)`, on some node: a system error says on which."""
    try:
        return function(item)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"{where}{error.strerror}, on the node {socket.gethostname()}, so the run has stopped; "
            "all nodes must see the data under the same path"
        ) from error
