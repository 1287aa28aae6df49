"""Executors of an extraction: a pool of processes on this machine, or a Ray cluster.

Both run `extract_shard` on every task and move a progress bar. They differ in how they learn of
finished episodes: the pool through shared counters, Ray through the result of each shard.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from mcr.data.extract_shard import ShardResult, ShardTask, extract_shard
from mcr.data.manifest import WRITTEN, RecordResult
from mcr.errors import UserError, require_choice
from mcr.runs.processes import EXECUTORS, KILLED, Pool, num_cores, process_pool

# How long to wait for the lock of a shard. The system frees the lock of a process that dies at
# once. The lock of a node that dies is freed when its lease on a network file system ends (NFS:
# 90 s), but Ray tries the shard again before that.
PATIENCE_S = {"local": 10.0, "ray": 120.0}

Show = Callable[[int, int], None]


class Executor(NamedTuple):
    """What extraction needs from an executor.

    map:     applies a function to items; the results come in the order of the items
    extract: runs `extract_shard` on all tasks (by shard number) and calls a function with the
             number of episodes done so far and the number of steps written
    """

    map: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
    extract: Callable[[dict[int, ShardTask], Show], list[ShardResult]]


def check_executor(executor: str, workers: int | None) -> None:
    """Raise UserError for an unknown executor, or for workers that it does not take."""
    require_choice("--engine", executor, EXECUTORS)
    if executor == "ray" and workers is not None:
        raise UserError(
            f"--workers {workers}: a Ray cluster has the cores that its nodes were started with "
            "(ray start --num-cpus); leave --workers out"
        )


@contextlib.contextmanager
def open_executor(
    executor: str, workers: int | None, num_shards: int, reassurance: str
) -> Iterator[Executor]:
    """Start an executor. What goes wrong in it leaves as a UserError that ends with `reassurance`.

    workers: processes of the executor "local"; None = one per core
    """
    if executor == "ray":
        from mcr.runs.ray_executor import ray_cluster, ray_map  # an extra

        with ray_cluster(reassurance):
            yield Executor(ray_map, _extract_on_ray)
        return
    board = _Board(num_shards)
    workers = min(num_cores() if workers is None else workers, num_shards)
    with process_pool(workers, reassurance, _take_board, (board,)) as pool, board.stopping():
        yield Executor(pool.map, functools.partial(_extract_in_pool, pool, board))


def _extract_on_ray(tasks: dict[int, ShardTask], show: Show) -> list[ShardResult]:
    from mcr.runs.ray_executor import ray_completed

    results: dict[int, ShardResult] = {}
    episodes = steps = 0
    for position, result in ray_completed(extract_shard, tasks.values()):
        results[position] = result
        episodes += len(result.records)
        steps += sum(record.steps for record in result.records if record.status == WRITTEN)
        show(episodes, steps)
    return [results[position] for position in sorted(results)]


class _Board:
    """Counters that workers write and the progress bar reads.

    Each shard has slots of its own, so there is no lock that a killed worker could keep.
    """

    def __init__(self, num_shards: int):
        context = multiprocessing.get_context("spawn")
        self.episodes = context.RawArray("q", num_shards)
        self.steps = context.RawArray("q", num_shards)
        self.stop = context.RawValue("b", 0)

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """At the end of this block, make the workers stop after their current episode."""
        try:
            yield
        finally:
            self.stop.value = 1


_board: _Board  # in worker processes


def _take_board(board: _Board) -> None:
    global _board
    _board = board


class _Stopped(Exception):
    """Another worker failed, or the user interrupted. The next run does the rest of the shard."""


def _extract_on_board(numbered: tuple[int, ShardTask]) -> ShardResult:
    number, task = numbered
    _board.episodes[number] = _board.steps[number] = 0  # a process that died may have counted some

    def post(result: RecordResult) -> None:
        _board.episodes[number] += 1
        _board.steps[number] += result.steps if result.status == WRITTEN else 0
        if _board.stop.value:
            raise _Stopped

    if _board.stop.value:
        raise _Stopped
    return extract_shard(task, post)


def _extract_in_pool(
    pool: Pool, board: _Board, tasks: dict[int, ShardTask], show: Show
) -> list[ShardResult]:
    def tick() -> None:
        show(sum(board.episodes), sum(board.steps))

    def without_lost(pool: Pool, numbered: tuple[int, ShardTask]) -> ShardResult:
        """Extract a shard without the episodes at which its process dies."""
        number, task = numbered
        while True:
            lost = board.episodes[number]
            if lost in task.lost:  # already reading it, to leave it out, kills the process
                raise UserError(
                    f"{task.page.name}, episode {lost + 1}: {KILLED}; take it out of the data"
                )
            task = replace(task, lost=task.lost | {lost})
            for is_done, result in pool.one_by_one(_extract_on_board, [(number, task)]):
                if is_done:
                    return result

    results = list(pool.map(_extract_on_board, tasks.items(), without_lost, tick))
    tick()
    return results
