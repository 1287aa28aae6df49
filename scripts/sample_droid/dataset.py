"""Records the planned episodes in parallel and writes them, in order, as an RLDS dataset.

Worker processes record the episodes and this process writes them as they come. So memory does not
grow with the dataset, and the result does not depend on the number of workers. The folder gets its
name when it is complete.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sample_droid import schema
from sample_droid.look import Style
from sample_droid.plan import EpisodePlan
from tqdm import tqdm

from mcr.data.tfrecord import write_records
from mcr.errors import UserError
from mcr.runs.atomic import atomic_path
from mcr.simulation.tasks import import_mujoco

REQUIREMENTS = "pip install -r scripts/requirements-sample-droid.txt"
_MODULES = ("mujoco", "robosuite", "scipy", "PIL")
_WAITING_PER_WORKER = 2  # finished episodes that may wait for an earlier one, about 1 MB each


@dataclass(frozen=True)
class EpisodeSummary:
    """What was recorded for a plan.

    frames:    number of steps
    num_bytes: size of the serialized record
    attempts:  number of simulations that it took
    """

    task: str
    oddity: str
    success: bool
    frames: int
    num_bytes: int
    attempts: int


def write_dataset(
    root: Path, plans: list[EpisodePlan], num_shards: int, num_workers: int, style: Style
) -> list[EpisodeSummary]:
    """Write `root/1.0.0`; returns a summary of each plan's episode, in order.

    The dataset gets the name of the folder `root`. Raises UserError if the folder exists already
    or if the simulator cannot run. A run that ends early leaves nothing behind.
    """
    final = root / schema.VERSION
    if final.exists():
        raise UserError(f"{final}: exists; remove it or choose another folder")
    missing = [module for module in _MODULES if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"the simulator needs {', '.join(missing)}; {REQUIREMENTS} (see its notes)")
    lengths = [len(plans[shard::num_shards]) for shard in range(num_shards)]
    summaries: list[EpisodeSummary] = []
    with _new_folder(final) as folder, tqdm(total=len(plans), unit="episode") as bar:
        recorded = _record_all(plans, num_workers, style)
        for shard, length in enumerate(lengths):
            name = f"{root.name}-train.tfrecord-{shard:05d}-of-{num_shards:05d}"
            write_records(folder / name, _payloads(islice(recorded, length), summaries, bar))
        num_bytes = sum(summary.num_bytes for summary in summaries)
        _write_json(
            folder / "dataset_info.json", schema.dataset_info(root.name, lengths, num_bytes)
        )
        _write_json(folder / "features.json", schema.features())
    return summaries


def _payloads(
    recorded: Iterator[tuple[bytes, EpisodeSummary]], summaries: list[EpisodeSummary], bar: tqdm
) -> Iterator[bytes]:
    """Yield the records of one shard, and append their summaries."""
    for payload, summary in recorded:
        summaries.append(summary)
        bar.update()
        yield payload


def _record_all(
    plans: list[EpisodePlan], num_workers: int, style: Style
) -> Iterator[tuple[bytes, EpisodeSummary]]:
    """Record the plans in `num_workers` processes; yields records and summaries in order."""
    context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_prepare_worker)
    waiting: deque[Future[tuple[bytes, EpisodeSummary]]] = deque()
    try:
        for plan in plans:
            waiting.append(pool.submit(_record, plan, style))
            if len(waiting) > _WAITING_PER_WORKER * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker died, probably out of memory; try fewer --workers") from error
    except BaseException:  # do not wait for episodes that will not be written
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its workers
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software OpenGL: one core per worker
    logging.disable(logging.WARNING)  # robosuite logs several lines per scene


def _record(plan: EpisodePlan, style: Style) -> tuple[bytes, EpisodeSummary]:
    import_mujoco("robosuite")
    from sample_droid import record  # only workers load the simulator

    recorded = record.record_episode(plan, style)
    summary = EpisodeSummary(
        plan.task,
        plan.oddity,
        recorded.success,
        recorded.frames,
        len(recorded.payload),
        recorded.attempts,
    )
    return recorded.payload, summary


@contextlib.contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `final`, or is deleted if the block raises."""
    made = [folder for folder in (final.parent, *final.parent.parents) if not folder.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(final) as partial:
            partial.mkdir()
            yield partial
    except BaseException:
        for folder in made:
            folder.rmdir()
        raise


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
