"""Work on a Ray cluster: a function is mapped over items by all cores of all nodes.

This is the only module that imports Ray (`pip install 'mcr[ray]'`). It maps the same functions that
a pool of processes runs on one machine. All nodes must see data sets and outputs under the same
paths of a shared file system. The package `mcr` is sent to them.

Ray repeats the work of a lost process or node elsewhere. A function must therefore give the right
result when it has been killed at any point and is called again.
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

# How often one item is tried again when its process or node dies. The limit reveals an item that
# kills its process every time.
_MAX_RETRIES = 5


@contextlib.contextmanager
def ray_cluster(reassurance: str = "") -> Iterator[None]:
    """Connect to the cluster at $RAY_ADDRESS, or else to this machine's, or else start one here.

    When the block ends, unfinished work is stopped. A UserError or system error of a call, work
    that killed its process every time, and Ctrl-C are raised as a UserError whose message ends with
    `reassurance`.
    """
    _connect()
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise  # a bug in mcr, with Ray's report of it
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
        ray.shutdown()  # stops the work of this program; ray.cancel may crash in Ray 2.60


def ray_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield `function(item)` of each item, in order. Call it inside `ray_cluster`.

    What a call raises is raised as soon as it is known. Results that are ready before their turn
    are kept in this process.
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
    """Yield (position, `function(item)`) as soon as each is done. Call it inside `ray_cluster`.

    At most two items per core are submitted at a time. Memory therefore does not grow with the
    number of items, and nodes that join later get their share.
    """
    remote = ray.remote(_say_where).options(name=function.__name__, max_retries=_MAX_RETRIES)
    numbered = enumerate(items)
    running: dict[Any, int] = {}  # reference to a future result -> position of its item
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
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends nothing to Ray
    ray.init(
        runtime_env={"py_modules": [str(Path(mcr.__file__).parent)]},
        logging_level="WARNING",
        log_to_driver=False,
    )


def _check_address(address: str) -> None:
    """Raise UserError if nothing answers at host:port, which Ray itself tries for minutes."""
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
    """Return `function(item)`; a system error is raised as a UserError that names the node."""
    try:
        return function(item)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"{where}{error.strerror}, on the node {socket.gethostname()}, so the run has stopped; "
            "all nodes must see the data under the same path"
        ) from error
