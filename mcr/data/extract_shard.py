"""Extraction of one RLDS shard: its records -> episode folders of the tree.

`extract_shard` is a pure function of a `ShardTask`, so it runs in any process, on any machine.
`extract.py` maps it over a data set. How an episode lies on disk is in `sources/tree.py`. What a
record means is in `droid.py`.
"""

from __future__ import annotations

import itertools
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcr.data import pictures
from mcr.data.droid import EXTERIOR_CAMERAS, RldsDataset
from mcr.data.episode import Episode
from mcr.data.manifest import ALREADY_THERE, FAILED, SKIPPED, WRITTEN, Manifest, RecordResult
from mcr.data.sources.tree import PARTIAL_PREFIX, write_episode
from mcr.data.tfrecord import BadRecord, Record
from mcr.errors import UserError, require_choice
from mcr.runs.atomic import remove

LANGUAGE_RULES = ("none", "any", "all")


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a tree. A tree can only be continued with the same options.

    cameras:          cameras to write
    format:           "png": pixels as TensorFlow decodes them. "jpeg": the stored bytes, which take
                      a quarter of the disk and are faster to decode
    require_language: instructions that an episode must have, or it is skipped: "all" three, "any"
                      of them, or "none"
    """

    cameras: tuple[str, ...] = EXTERIOR_CAMERAS
    format: str = "png"
    # Upstream: "all", which halves the data although no loss reads them.
    require_language: str = "none"

    def check(self, dataset: RldsDataset) -> None:
        """Raise UserError with the nearest choice for an unknown option or camera."""
        require_choice("--format", self.format, ENCODERS)
        require_choice("--require-language", self.require_language, LANGUAGE_RULES)
        for camera in self.cameras:
            require_choice("--cameras", camera, dataset.cameras)
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise UserError(
                f"--cameras {' '.join(self.cameras)}: give at least one camera, each once"
            )


@dataclass(frozen=True)
class ShardTask:
    """All that `extract_shard` needs. It is small, so it can travel to another machine.

    dataset: narrowed to the one shard
    names:   folder of each of its records, in order
    limit:   number of records to extract; None = all
    """

    dataset: RldsDataset
    names: tuple[str, ...]
    limit: int | None
    options: Options
    manifest: Manifest

    @property
    def shard(self) -> Path:
        return self.dataset.shards[0]


@dataclass(frozen=True)
class ShardResult:
    """The result of each record, and the most memory that the process has held so far."""

    shard: Path
    records: tuple[RecordResult, ...]
    peak_memory_mb: float


def extract_shard(
    task: ShardTask, on_record: Callable[[RecordResult], None] = lambda result: None
) -> ShardResult:
    """Write the episodes of a shard that the tree lacks, then the shard's page of the manifest.

    on_record: is called after each record; an exception from it ends the work between two episodes

    A damaged record gives a result and no exception. Raises OSError if the disk is full or
    unreadable, and UserError if another run works on the same shard.
    """
    with task.manifest.exclusive(task.shard.name):
        for name in filter(None, task.names):  # left by a killed run
            remove(task.manifest.output / f"{PARTIAL_PREFIX}{name}")
        results = task.manifest.finished_results(task.shard, task.limit)
        if results is None:
            results = tuple(_extract_records(task, on_record))
            task.manifest.write_results(task.shard, results, complete=task.limit is None)
        else:
            for result in results:
                on_record(result)
    return ShardResult(task.shard, results, _peak_memory_mb())


def _extract_records(
    task: ShardTask, on_record: Callable[[RecordResult], None]
) -> Iterator[RecordResult]:
    records = itertools.islice(task.dataset.records(task.shard), task.limit)
    names = itertools.chain(task.names, itertools.repeat(""))  # the scan ends at a damaged record
    while (record := next(records, None)) is not None:
        result = _extract_record(task, record, next(names))
        del record  # before the next one is read: a long episode is over 100 MB
        on_record(result)
        yield result


def _extract_record(task: ShardTask, record: Record, name: str) -> RecordResult:
    root = task.manifest.output
    if name and (root / name).is_dir():
        return RecordResult(ALREADY_THERE, name, record.offset)
    encode, suffix = ENCODERS[task.options.format]
    try:
        episode = task.dataset.parse(record)
        if not name.startswith(episode.origin.name):
            raise ValueError("the shard has changed since it was scanned; run again")
        if _lacks_language(episode, task.options.require_language):
            rule = f"--require-language {task.options.require_language}"
            return RecordResult(SKIPPED, name, record.offset, episode.length, rule)
        write_episode(root, name, episode, task.options.cameras, encode, suffix)
    except BadRecord as error:
        return RecordResult(FAILED, name, record.offset, reason=error.reason)
    except ValueError as error:  # mostly a picture that cannot be decoded
        return RecordResult(FAILED, name, record.offset, reason=str(error))
    return RecordResult(WRITTEN, name, record.offset, episode.length)


def _lacks_language(episode: Episode, rule: str) -> bool:
    present = [bool(text.strip()) for text in episode.languages.values()]
    return {"none": False, "any": not any(present), "all": not all(present)}[rule]


def _to_png(data: memoryview) -> bytes:
    return pictures.encode_png(pictures.decode(data))


def _keep_jpeg(data: memoryview) -> bytes:
    """Return the stored bytes. Raises ValueError if they do not begin and end like a JPEG."""
    if bytes(data[:2]) != b"\xff\xd8" or bytes(data[-2:]) != b"\xff\xd9":
        raise ValueError("not a whole JPEG; if the pictures are stored as PNG, use --format png")
    pictures.size_of(data)
    return bytes(data)


ENCODERS: dict[str, tuple[Callable[[memoryview], bytes], str]] = {
    "png": (_to_png, ".png"),
    "jpeg": (_keep_jpeg, ".jpg"),
}


def _peak_memory_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage counts the parent's memory too
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
