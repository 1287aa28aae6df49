"""Extraction of one part of a data set, mostly a shard: its episodes -> folders of the tree.

`extract_shard` is a pure function of a `ShardTask`, so it runs in any process, on any machine.
`extract.py` maps it over a data set. How an episode lies on disk is in `sources/tree.py`, how its
pictures are written is in `extract_pictures.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mcr.data.episode import Episode, Origin
from mcr.data.extract_pictures import FORMATS, files_of
from mcr.data.manifest import ALREADY_THERE, FAILED, SKIPPED, WRITTEN, Manifest, Page, RecordResult
from mcr.data.regular_files import shown
from mcr.data.schema import LANGUAGES, Schema
from mcr.data.sources import open_source
from mcr.data.sources.rlds import Shard
from mcr.data.sources.source import Decoder, Part, Source, sentence
from mcr.data.tfrecord import BadRecord
from mcr.data.tree_writing import PARTIAL_PREFIX, write_episode_folder
from mcr.errors import UserError, require_choice
from mcr.runs.atomic import remove
from mcr.runs.processes import KILLED

LANGUAGE_RULES = ("none", "any", "all")


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a tree. A tree can only be continued with the same options.

    cameras:          cameras to write; () = the default ones of the schema, or all
    format:           "png": pixels as TensorFlow decodes them. "jpeg": the stored bytes, which take
                      a quarter of the disk and are faster to decode
    require_language: instructions that an episode must have, or it is skipped: "all" that the data
                      set has, "any" of them, or "none"
    """

    cameras: tuple[str, ...] = ()
    format: str = "png"
    # Upstream: "all", which halves the data although no loss reads them.
    require_language: str = "none"

    def resolve(self, source: Source) -> Options:
        """Fill in the default cameras.

        Raises UserError with the nearest choice for an unknown option or camera.
        """
        require_choice("--format", self.format, FORMATS)
        require_choice("--require-language", self.require_language, LANGUAGE_RULES)
        cameras = self.cameras or source.schema.default_cameras or tuple(source.cameras)
        for camera in cameras:
            require_choice("--cameras", camera, source.cameras)
        if len(set(cameras)) < len(cameras):
            raise UserError(f"--cameras {' '.join(cameras)}: name each once")
        return replace(self, cameras=cameras)


@dataclass(frozen=True)
class ShardTask:
    """All that `extract_shard` needs. It is small, so it can travel to another machine.

    part:        what to extract
    page:        its page of the manifest
    names:       folder of each of its episodes, in order
    limit:       number of episodes to extract; None = all
    path, root, schema: of the data set; the decoder of pictures is opened with them
    has_decoder: are pictures in no files, so that a decoder is needed?
    lost:        positions of the episodes that killed their process, which are left out
    """

    part: Part
    page: Page
    names: tuple[str, ...]
    limit: int | None
    options: Options
    manifest: Manifest
    path: Path
    root: Path
    schema: Schema
    has_decoder: bool = False
    lost: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ShardResult:
    """The result of each record, and the most memory that the process has held so far."""

    page: Page
    records: tuple[RecordResult, ...]
    peak_memory_mb: float


def scan_origins(part: Part) -> list[Origin | None]:
    """Return where each episode of a part comes from, in order; None where that cannot be told."""
    if isinstance(part, Shard):
        return part.origins()
    return [None if isinstance(entry, str) else entry.origin for entry in part.episodes()]


def extract_shard(
    task: ShardTask, on_record: Callable[[RecordResult], None] = lambda result: None
) -> ShardResult:
    """Write the episodes of a part that the tree lacks, then the part's page of the manifest.

    on_record: is called after each record; an exception from it ends the work between two episodes

    A damaged record gives a result and no exception. Raises OSError if the disk is full or
    unreadable, and UserError if another run works on the same part.
    """
    with task.manifest.exclusive(task.page.name):
        for name in filter(None, task.names):  # left by a killed run
            remove(task.manifest.output / f"{PARTIAL_PREFIX}{name}")
        results = task.manifest.finished_results(task.page, task.limit)
        if results is None:
            with _open_decoder(task) as decoder:
                results = tuple(_extract_records(task, decoder, on_record))
            task.manifest.write_results(task.page, results, complete=task.limit is None)
        else:
            for result in results:
                on_record(result)
    return ShardResult(task.page, results, _peak_memory_mb())


@contextlib.contextmanager
def _open_decoder(task: ShardTask) -> Iterator[Decoder | None]:
    decoder = open_source(task.path, task.schema).decoder() if task.has_decoder else None
    if decoder is None:
        yield None
    else:
        with contextlib.closing(decoder):
            yield decoder


def _extract_records(
    task: ShardTask, decoder: Decoder | None, on_record: Callable[[RecordResult], None]
) -> Iterator[RecordResult]:
    entries = itertools.islice(_entries(task.part), task.limit)
    names = itertools.chain(task.names, itertools.repeat(""))  # the scan ends at a damaged record
    positions = itertools.count()
    while (entry := next(entries, None)) is not None:
        if next(positions) in task.lost:
            entry = entry[0], KILLED
        result = _extract_record(task, decoder, next(names), *entry)
        del entry  # before the next one is read: a long episode is over 100 MB
        on_record(result)
        yield result


def _entries(part: Part) -> Iterator[tuple[int, Episode | BadRecord | str]]:
    """Yield (`RecordResult.offset`, episode or what is wrong with it)."""
    if isinstance(part, Shard):
        yield from part.entries()
    else:
        yield from enumerate(part.episodes())


def _extract_record(
    task: ShardTask,
    decoder: Decoder | None,
    name: str,
    offset: int,
    entry: Episode | BadRecord | str,
) -> RecordResult:
    if name and (task.manifest.output / name).is_dir():
        return RecordResult(ALREADY_THERE, name, offset)
    if not isinstance(entry, Episode):
        reason = entry.reason if isinstance(entry, BadRecord) else entry
        reason = f"{name}: {reason}" if reason == KILLED else reason
        return RecordResult(FAILED, name, offset, reason=shown(reason))
    try:
        if not name.startswith(entry.origin.name):
            raise ValueError("the data set has changed since it was scanned; run again")
        if rule := _broken_rule(entry, task.options):
            return RecordResult(SKIPPED, name, offset, entry.length, rule)
        _write(task, decoder, name, entry)
    except (MemoryError, ValueError) as error:  # mostly a picture that cannot be decoded
        place = "" if isinstance(task.part, Shard) else f"{name} ({entry.key}): "
        return RecordResult(FAILED, name, offset, reason=shown(f"{place}{sentence(error)}"))
    return RecordResult(WRITTEN, name, offset, entry.length)


def _broken_rule(episode: Episode, options: Options) -> str:
    """Return the rule by which an episode is skipped, or ""."""
    if not set(options.cameras) & set(episode.pictures):
        return f"--cameras {' '.join(options.cameras)}"
    present = [bool(text.strip()) for text in episode.texts] or [False]
    lacks = {"none": False, "any": not any(present), "all": not all(present)}
    rule = options.require_language
    return f"--require-language {rule}" if lacks[rule] else ""


def _write(task: ShardTask, decoder: Decoder | None, name: str, episode: Episode) -> None:
    """Write an episode with those of the cameras that it has."""
    write_episode_folder(
        root=task.manifest.output,
        name=name,
        pictures={
            camera: files_of(episode, camera, task.root, decoder, task.options.format)
            for camera in task.options.cameras
            if camera in episode.pictures
        },
        suffix=FORMATS[task.options.format][0],
        texts=dict(zip(LANGUAGES, episode.texts, strict=False)),
        signals=episode.signals,
        origin=episode.origin,
    )


def _peak_memory_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage counts the parent's memory too
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
