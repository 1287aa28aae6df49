"""Records the planned episodes in parallel and writes them, in order, as an RLDS dataset.

Worker processes record the episodes, each into a file of its own in OUT/.recorded. A run that was
stopped is continued by the same command, and a worker that a fault of the simulator kills is
replaced. When all are recorded they are put together in the order of their plans, so the result
does not depend on the number of workers. The folder gets its name when it is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sample_droid import schema
from sample_droid.look import Style
from sample_droid.plan import EpisodePlan

from mcr.data.tfrecord import write_records
from mcr.errors import UserError
from mcr.runs.atomic import atomic_path, write_text
from mcr.runs.processes import process_pool, progress_bar
from mcr.simulation.tasks import import_mujoco

REQUIREMENTS = "pip install -r scripts/requirements-sample-droid.txt"
_MODULES = ("mujoco", "robosuite", "scipy", "PIL")


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
    or if the simulator cannot run. Episodes of a run that ends early are kept for the next one.
    """
    final = root / schema.VERSION
    if final.exists():
        raise UserError(f"{final}: exists; remove it or choose another folder")
    missing = [module for module in _MODULES if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"the simulator needs {', '.join(missing)}; {REQUIREMENTS} (see its notes)")
    recordings = _record_all(root / ".recorded", plans, num_workers, style)
    summaries = [recording.summary() for recording in recordings]
    lengths = [len(plans[shard::num_shards]) for shard in range(num_shards)]
    payloads = (recording.record.read_bytes() for recording in recordings)
    with atomic_path(final) as folder:
        folder.mkdir()
        for shard, length in enumerate(lengths):
            name = f"{root.name}-train.tfrecord-{shard:05d}-of-{num_shards:05d}"
            write_records(folder / name, islice(payloads, length))
        num_bytes = sum(summary.num_bytes for summary in summaries)
        _write_json(
            folder / "dataset_info.json", schema.dataset_info(root.name, lengths, num_bytes)
        )
        _write_json(folder / "features.json", schema.features())
    shutil.rmtree(root / ".recorded")
    return summaries


@dataclass(frozen=True)
class _Recording:
    """Where a plan's episode is kept until all are recorded. Its name says plan and style."""

    plan: EpisodePlan
    style: Style
    folder: Path

    @property
    def record(self) -> Path:
        """The serialized record, written after the summary."""
        return self.folder / f"{self._name}.record"

    def summary(self) -> EpisodeSummary:
        return EpisodeSummary(**json.loads(self._summary.read_text()))

    def make(self) -> None:
        """Record the episode, in a worker process."""
        import_mujoco("robosuite")
        from sample_droid import record  # only workers load the simulator

        recorded = record.record_episode(self.plan, self.style)
        num_bytes = len(recorded.payload)
        what = (self.plan.task, self.plan.oddity, recorded.success, recorded.frames)
        summary = EpisodeSummary(*what, num_bytes, recorded.attempts)
        write_text(self._summary, json.dumps(dataclasses.asdict(summary)))
        with atomic_path(self.record) as partial:
            partial.write_bytes(recorded.payload)

    @property
    def _summary(self) -> Path:
        return self.folder / f"{self._name}.json"

    @property
    def _name(self) -> str:
        return hashlib.sha256(repr((self.plan, self.style)).encode()).hexdigest()[:20]


def _record_all(
    folder: Path, plans: list[EpisodePlan], num_workers: int, style: Style
) -> list[_Recording]:
    """Record the plans that were not recorded before, in `num_workers` processes."""
    recordings = [_Recording(plan, style, folder) for plan in plans]
    missing = [recording for recording in recordings if not recording.record.exists()]
    kept = "; what is recorded is kept, the same command goes on"
    folder.mkdir(parents=True, exist_ok=True)
    with process_pool(num_workers, kept, _prepare_worker) as pool:
        made = pool.map(_Recording.make, missing)
        bar = progress_bar(made, "recording", "episode", len(plans))
        bar.update(len(plans) - len(missing))
        for _ in bar:
            pass
    return recordings


def _prepare_worker() -> None:
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software OpenGL: one core per worker
    logging.disable(logging.WARNING)  # robosuite logs several lines per scene


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
