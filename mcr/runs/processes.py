"""Worker processes of one machine, and the progress bar that shows their work.

Workers are spawned, not forked: a fork copies the locks of the parent's threads and, once torch or
an index is loaded, its memory. Workers end when their parent ends, also when it is killed. For
several machines see `ray_executor`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from mcr.errors import UserError, require_choice

EXECUTORS = ("local", "ray")  # the cores of this machine, or of a Ray cluster
KILLED = (  # what a report says of the work
    "the process that worked on it was killed twice, by a fault in a library or by the system if "
    "memory ran out"
)
_LEAST_SHARE = 2**31  # bytes; an episode of DROID takes at most 0.5 GB
_MOST_LOST = 100  # pieces of work that kill their processes; more say that the machine is at fault


def num_cores() -> int:
    """Return the number of cores that this process may use.

    A cluster's scheduler may allow fewer than the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the name of this machine's processor and its number of cores, for people to read."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores"


def memory_of_machine() -> int:
    """Return the bytes of memory that the processes of this machine or container may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.exists() else ""
    return min(memory, int(text)) if text.isdecimal() else memory


@contextlib.contextmanager
def limited_memory(num_processes: int) -> Iterator[None]:
    """Let an allocation fail in this process that is too large for one of `num_processes`.

    Inside the block a process may add its share of half the machine's memory, at least 2 GiB, to
    what it has now. More raises MemoryError, which costs the episode that asks for it, instead of a
    signal of the system that ends the run. There is no limit on systems other than Linux.
    """
    previous = resource.getrlimit(resource.RLIMIT_DATA)
    _limit_memory(num_processes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, previous)


def _limit_memory(num_processes: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    data = _data_bytes()
    if data is not None:
        limit = data + max(_LEAST_SHARE, memory_of_machine() // 2 // num_processes)
        limit = limit if soft == resource.RLIM_INFINITY else min(limit, soft)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _data_bytes() -> int | None:
    """Return the bytes that RLIMIT_DATA counts in this process; None if the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [line for line in lines if line.startswith("VmData:")]
    return int(found[0].split()[1]) * 2**10 if found else None


class Pool:
    """Worker processes that are replaced when they die.

    The pieces of work that were in flight then are done again, one by one, with one process. A
    piece that kills its process again is lost, and the others go on. So a piece must give the right
    result when it has been killed at any point and is done again.
    """

    def __init__(
        self, workers: int, initializer: Callable[..., None] | None = None, initargs: tuple = ()
    ):
        self._workers = workers
        self._arguments = (_Spawn(), _start_worker, (workers, initializer, initargs))
        self._executor = self._start(workers)
        self._num_lost = 0

    def _start(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, *self._arguments)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin a call, which is not repeated if its process dies."""
        return self._executor.submit(function, *arguments)

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        on_lost: Callable[[Pool, Any], Any] | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[Any]:
        """Yield `function(item)` of each item, in order.

        on_lost: gives the result of an item that kills its process; None = the run ends
        tick:    is called several times a second
        """
        ready: dict[int, Any] = {}
        due = 0
        for position, result in self._completed(function, list(items), on_lost, tick):
            ready[position] = result
            while due in ready:
                yield ready.pop(due)
                due += 1

    def one_by_one(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[bool, Any]]:
        """Yield (is it done?, `function(item)`) of each item, with one process at a time."""
        executor = self._start(1)
        try:
            for item in items:
                try:
                    yield True, executor.submit(function, item).result()
                except BrokenProcessPool:
                    self._num_lost += 1
                    if self._num_lost > _MOST_LOST:
                        raise
                    executor.shutdown()
                    executor = self._start(1)
                    yield False, None
        finally:
            executor.shutdown(cancel_futures=True)

    def shutdown(self) -> None:
        """Wait for the work that has begun, and cancel what has not."""
        self._executor.shutdown(cancel_futures=True)

    def _completed(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        on_lost: Callable[[Pool, Any], Any] | None,
        tick: Callable[[], None],
    ) -> Iterator[tuple[int, Any]]:
        """Yield (position of an item, its result) as soon as each is done."""
        todo = deque(range(len(items)))
        running: dict[Future[Any], int] = {}
        while todo or running:
            interrupted: list[int] = []
            while todo and len(running) < 2 * self._workers and not interrupted:
                position = todo.popleft()
                try:
                    running[self.submit(function, items[position])] = position
                except BrokenProcessPool:
                    interrupted.append(position)
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            tick()
            for future in list(running) if interrupted else done:
                position = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    interrupted.append(position)
                    continue
                yield position, result
            if interrupted:
                interrupted += running.values()  # they are broken off, too, or soon will be
                running.clear()
                yield from self._repeat(function, items, sorted(interrupted), on_lost)

    def _repeat(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        positions: list[int],
        on_lost: Callable[[Pool, Any], Any] | None,
    ) -> Iterator[tuple[int, Any]]:
        """Do again what was in flight when a process died, with new processes."""
        self._executor.shutdown()
        self._executor = self._start(self._workers)
        again = self.one_by_one(function, [items[position] for position in positions])
        for position, (is_done, result) in zip(positions, again, strict=True):
            if not is_done and on_lost is None:
                raise BrokenProcessPool(KILLED)
            yield position, result if is_done or on_lost is None else on_lost(self, items[position])


@contextlib.contextmanager
def process_pool(
    workers: int | None,
    reassurance: str = "",
    initializer: Callable[..., None] | None = None,
    initargs: tuple = (),
) -> Iterator[Pool]:
    """Open a pool of `workers` processes, one per core if None.

    When the block ends, work that has not begun is cancelled, and work that has begun is waited
    for. Work that kills its process, Ctrl-C and system errors such as a full disk are raised as a
    UserError whose message ends with `reassurance`.

    A worker has the limit of `limited_memory`.

    initializer, initargs: what each worker calls first
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give at least 1")
    pool = Pool(workers or num_cores(), initializer, initargs)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, by the system if memory ran out (then use fewer "
            f"--workers){reassurance}"
        ) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        what = error.strerror or str(error)  # NumPy's have no number
        raise UserError(f"{where}{what}, so the run has stopped{reassurance}") from error
    except KeyboardInterrupt:
        raise UserError(f"interrupted{reassurance}") from None
    finally:
        pool.shutdown()


def ordered_map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int = 0,
    executor: str = "local",
    on_lost: Callable[[Pool, Any], Any] | None = None,
) -> Iterator[Any]:
    """Apply `function` to each item and yield the results in the order of the items.

    executor: "local" (processes of this machine) or "ray" (a Ray cluster)
    workers:  processes of the executor "local"; 0 starts one per core, 1 starts none
    on_lost:  as for `Pool.map`; on a Ray cluster an item that kills its process ends the run
    """
    require_choice("executor", executor, EXECUTORS)
    workers = max(1, min(workers or num_cores(), len(items)))
    if executor == "ray":
        from mcr.runs.ray_executor import ray_cluster, ray_map  # an extra

        with ray_cluster():
            yield from ray_map(function, items)
    elif workers == 1:
        with limited_memory(1):
            yield from map(function, items)
    else:
        with process_pool(workers) as pool:
            yield from pool.map(function, items, on_lost)


class _Worker(SpawnProcess):
    """A worker that ignores Ctrl-C from its first instruction on, because the parent handles it.

    It does not run the program of its parent again. Spawned processes usually do, so a script that
    starts some must guard its code by `if __name__ == "__main__"`. Workers need nothing of it: they
    call functions of modules.
    """

    def start(self) -> None:
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited
        try:
            with _no_program():
                super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)


_starting = threading.Lock()


@contextlib.contextmanager
def _no_program() -> Iterator[None]:
    """Let `multiprocessing` find no program that a new process would have to run."""
    with _starting:
        program = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = program


class _Spawn(SpawnContext):
    Process = _Worker


def _start_worker(
    num_workers: int, initializer: Callable[..., None] | None, initargs: tuple
) -> None:
    _limit_memory(num_workers)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if initializer:
        initializer(*initargs)


def _die_with_parent() -> None:
    """Exit when the parent ends. Otherwise the worker of a killed parent waits forever for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def progress_bar(iterable: Iterable | None, what: str, unit: str, total: int) -> tqdm:
    """Show progress and the time left: a bar on a terminal, a line every 30 s in a log file.

    iterable: what the bar iterates over; None = the caller calls `update`
    what, unit, total: the label, and how many of what there are
    """
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(
        iterable,
        what,
        total,
        unit=unit,
        mininterval=interval,
        maxinterval=interval,
        smoothing=0.05,
    )
