"""The folder of an RLDS dataset: record the planned episodes in parallel, write shards in order.

Episodes are recorded in worker processes and written by this one as they come, so memory does not
grow with the dataset and the result does not depend on the number of workers. The folder gets its
name when everything in it is complete.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
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

REQUIREMENTS = "pip install -r scripts/requirements-sample-droid.txt"
_MODULES = ("mujoco", "robosuite", "scipy", "PIL")
_WAITING_PER_WORKER = 2  # finished episodes that may wait for an earlier one, about 1 MB each


@dataclass(frozen=True)
class Outcome:
    """What became of a plan."""

    task: str
    oddity: str
    success: bool
    frames: int
    num_bytes: int
    attempts: int


def write_dataset(
    root: Path, plans: list[EpisodePlan], num_shards: int, num_workers: int, style: Style
) -> list[Outcome]:
    """Write `root/1.0.0`; returns what became of each plan, in order.

    The dataset gets the name of the folder `root`. Raises UserError if the folder exists already
    or if the simulator cannot run; however it ends early, nothing is left behind.
    """
    final = root / schema.VERSION
    if final.exists():
        raise UserError(f"{final}: exists; remove it or choose another folder")
    missing = [module for module in _MODULES if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"the simulator needs {', '.join(missing)}; {REQUIREMENTS} (see its notes)")
    lengths = [len(plans[shard::num_shards]) for shard in range(num_shards)]
    outcomes: list[Outcome] = []
    with _folder_that_becomes(final) as folder, tqdm(total=len(plans), unit="episode") as bar:
        recorded = _record_all(plans, num_workers, style)
        for shard, length in enumerate(lengths):
            name = f"{root.name}-train.tfrecord-{shard:05d}-of-{num_shards:05d}"
            write_records(folder / name, _payloads(islice(recorded, length), outcomes, bar))
        num_bytes = sum(outcome.num_bytes for outcome in outcomes)
        _write_json(
            folder / "dataset_info.json", schema.dataset_info(root.name, lengths, num_bytes)
        )
        _write_json(folder / "features.json", schema.features())
    return outcomes


def _payloads(
    recorded: Iterator[tuple[bytes, Outcome]], outcomes: list[Outcome], bar: tqdm
) -> Iterator[bytes]:
    """The records of one shard; notes what became of each."""
    for payload, outcome in recorded:
        outcomes.append(outcome)
        bar.update()
        yield payload


def _record_all(
    plans: list[EpisodePlan], num_workers: int, style: Style
) -> Iterator[tuple[bytes, Outcome]]:
    """Carry out the plans on `num_workers` processes; yields in order."""
    context = multiprocessing.get_context("spawn")  # OpenGL does not survive a fork
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_prepare_worker)
    waiting: deque[Future[tuple[bytes, Outcome]]] = deque()
    try:
        for plan in plans:
            waiting.append(pool.submit(_record, plan, style))
            if len(waiting) > _WAITING_PER_WORKER * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker died, probably out of memory; try fewer --workers") from error
    except BaseException:  # do not wait for episodes that nobody will write
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software OpenGL: one core per worker
    logging.disable(logging.WARNING)  # robosuite logs several lines per scene


def _record(plan: EpisodePlan, style: Style) -> tuple[bytes, Outcome]:
    _require_rendering()
    from sample_droid import record  # only workers load the simulator

    recording = record.record_episode(plan, style)
    outcome = Outcome(
        plan.task,
        plan.oddity,
        recording.success,
        recording.frames,
        len(recording.payload),
        recording.attempts,
    )
    return recording.payload, outcome


@functools.cache
def _require_rendering() -> None:
    """Raise UserError if no picture can be rendered on this machine."""
    try:
        import mujoco  # looks for OpenGL

        context = mujoco.GLContext(8, 8)
        context.make_current()
        context.free()
    except Exception as error:  # MuJoCo and the OpenGL bindings raise nearly anything here
        raise UserError(
            f"off-screen rendering with MUJOCO_GL={os.environ.get('MUJOCO_GL')} fails "
            f"({type(error).__name__}: {error}); install libegl1 libegl-mesa0 libgl1-mesa-dri, "
            "or libosmesa6 and set MUJOCO_GL=osmesa"
        ) from error


@contextlib.contextmanager
def _folder_that_becomes(final: Path) -> Iterator[Path]:
    """A temporary folder that gets its final name if all goes well, and vanishes otherwise."""
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    made = [folder for folder in (final.parent, *final.parent.parents) if not folder.exists()]
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial)
        for folder in made:
            folder.rmdir()
        raise


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
