"""Extraction: RLDS shards -> the PNG/pickle tree. Multicore, resumable, loses nothing.

The work is `extract_shard`, a function of one shard and the options. `extract` maps it over a data
set with one of two executors: a pool of spawned processes on this machine, or a Ray cluster.
Pictures never travel between processes, so memory grows with the workers, not with the data set.

Every record ends as written, already there, skipped (by a rule) or failed (with the error), and
the manifest says which. Killed at any moment and run again, the tree ends up the same, byte for
byte. How an episode lies on disk is `episode.py`'s business, what a record means is `droid.py`'s.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mcr.data import pictures
from mcr.data.droid import EXTERIOR_CAMERAS, RldsDataset, missing_shards, scan_file_paths
from mcr.data.episode import Episode, unique_names
from mcr.data.manifest import ALREADY_THERE, FAILED, SKIPPED, STATUSES, WRITTEN, Manifest, Outcome
from mcr.data.sources.tree import PARTIAL_PREFIX, write_episode
from mcr.data.tfrecord import BadRecord, Record
from mcr.errors import UserError, require_choice
from mcr.runs.processes import EXECUTORS, num_cores, process_pool, progress_bar

LANGUAGE_RULES = ("none", "any", "all")


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a tree; it can only be continued with the same ones.

    cameras:            cameras to write
    format:           "png": pixels as TensorFlow decodes them. "jpeg": the stored bytes, a quarter
                      of the disk and faster to decode
    require_language: instructions that an episode must have, or it is skipped: "all" three, "any"
                      of them, or "none"
    """

    cameras: tuple[str, ...] = EXTERIOR_CAMERAS
    format: str = "png"
    # Upstream: "all", which halves the data although no loss reads them.
    require_language: str = "none"

    def check(self, dataset: RldsDataset) -> None:
        """Raise UserError, naming the nearest choice, if `dataset` has nothing of the kind."""
        require_choice("--format", self.format, ENCODERS)
        require_choice("--require-language", self.require_language, LANGUAGE_RULES)
        for camera in self.cameras:
            require_choice("--cameras", camera, dataset.cameras)
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise UserError(
                f"--cameras {' '.join(self.cameras)}: give at least one camera, each once"
            )


# --------------------------------------------------------------------------- one shard


@dataclass(frozen=True)
class ShardTask:
    """All that `extract_shard` needs; small, so that it can travel to another process or machine.

    dataset: narrowed to the one shard
    names:   the folder of each of its records, in order
    limit:   only the first so many records; None for all
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
    """The outcome of each record, and the most memory that the process has held so far."""

    shard: Path
    outcomes: tuple[Outcome, ...]
    peak_memory_mb: float


def extract_shard(
    task: ShardTask, on_outcome: Callable[[Outcome], None] = lambda outcome: None
) -> ShardResult:
    """Write the episodes of one shard that are not in the tree yet, and its page of the manifest.

    `on_outcome` hears of every record; what it raises ends the work, between two episodes. Damaged
    records are outcomes, not exceptions. Raises OSError when the disk is full or unreadable, and
    UserError when another run works on the same shard.
    """
    with task.manifest.exclusive(task.shard.name):
        for name in filter(None, task.names):  # left by a killed run
            partial = task.manifest.output / f"{PARTIAL_PREFIX}{name}"
            shutil.rmtree(partial, ignore_errors=True)
        outcomes = task.manifest.finished_outcomes(task.shard, task.limit)
        if outcomes is None:
            outcomes = tuple(_extract_records(task, on_outcome))
            task.manifest.write_outcomes(task.shard, outcomes, complete=task.limit is None)
        else:
            for outcome in outcomes:
                on_outcome(outcome)
    return ShardResult(task.shard, outcomes, _peak_memory_mb())


def _extract_records(task: ShardTask, on_outcome: Callable[[Outcome], None]) -> Iterator[Outcome]:
    records = itertools.islice(task.dataset.records(task.shard), task.limit)
    names = itertools.chain(task.names, itertools.repeat(""))  # the scan ends at a damaged record
    while (record := next(records, None)) is not None:
        outcome = _extract_record(task, record, next(names))
        del record  # before the next one is read: a long episode is over 100 MB
        on_outcome(outcome)
        yield outcome


def _extract_record(task: ShardTask, record: Record, name: str) -> Outcome:
    root = task.manifest.output
    if name and (root / name).is_dir():
        return Outcome(ALREADY_THERE, name, record.offset)
    encode, suffix = ENCODERS[task.options.format]
    try:
        episode = task.dataset.parse(record)
        if not name.startswith(episode.origin.name):
            raise ValueError("the shard has changed since it was scanned; run again")
        if _lacks_language(episode, task.options.require_language):
            rule = f"--require-language {task.options.require_language}"
            return Outcome(SKIPPED, name, record.offset, episode.length, rule)
        write_episode(root, name, episode, task.options.cameras, encode, suffix)
    except BadRecord as error:
        return Outcome(FAILED, name, record.offset, reason=error.reason)
    except ValueError as error:  # mostly a picture that cannot be decoded
        return Outcome(FAILED, name, record.offset, reason=str(error))
    return Outcome(WRITTEN, name, record.offset, episode.length)


def _lacks_language(episode: Episode, rule: str) -> bool:
    present = [bool(text.strip()) for text in episode.languages.values()]
    return {"none": False, "any": not any(present), "all": not all(present)}[rule]


def _to_png(data: memoryview) -> bytes:
    return pictures.encode_png(pictures.decode(data))


def _keep_jpeg(data: memoryview) -> bytes:
    """The stored bytes, after a look at both ends."""
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


# --------------------------------------------------------------------------- a data set


@dataclass(frozen=True)
class Summary:
    """The accounting of one run; `str()` shows it.

    num_expected: how many records `dataset_info.json` says there are, None if it does not
    missing:      numbers of the shards that the input lacks
    """

    results: list[ShardResult]
    num_cameras: int
    num_expected: int | None
    missing: list[int]
    manifest: Path
    seconds: float

    @property
    def outcomes(self) -> list[tuple[Path, Outcome]]:
        return [(result.shard, outcome) for result in self.results for outcome in result.outcomes]

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of records."""
        found = Counter(outcome.status for _, outcome in self.outcomes)
        return {status: found[status] for status in STATUSES}

    def __str__(self) -> str:
        counts = self.counts
        rules = Counter(o.reason for _, o in self.outcomes if o.status == SKIPPED)
        lines = [f"{count:9,} {status}" for status, count in counts.items()]
        lines += [f"{'':10}{count:,} by {rule}" for rule, count in rules.items()]
        total = f"{sum(counts.values()):9,} episodes in {len(self.results):,} shards"
        if self.num_expected not in (None, sum(counts.values())):
            total += f"; dataset_info.json says {self.num_expected:,}"
        return "\n".join([*lines, total, self._speed(), *self._warnings()])

    def _speed(self) -> str:
        steps = sum(outcome.steps for _, outcome in self.outcomes if outcome.status == WRITTEN)
        frames = steps * self.num_cameras
        memory = max((result.peak_memory_mb for result in self.results), default=0.0)
        return (
            f"{frames:,} frames in {self.seconds:.1f} s ({frames / self.seconds:,.0f} frames/s), "
            f"at most {memory:.0f} MB a worker\nmanifest: {self.manifest}"
        )

    def _warnings(self) -> Iterator[str]:
        if self.missing:
            numbers = ", ".join(map(str, self.missing[:10])) + ", ..." * (len(self.missing) > 10)
            yield f"warning: {len(self.missing):,} shards are not in the input: {numbers}"
        failed = [(shard, outcome) for shard, outcome in self.outcomes if outcome.status == FAILED]
        for shard, outcome in failed[:10]:
            yield f"failed: {shard.name} at byte {outcome.offset}: {outcome.reason}"
        if len(failed) > 10:
            yield f"failed: {len(failed) - 10:,} more, see the manifest"


def extract(
    source: str | Path,
    output: str | Path,
    options: Options | None = None,
    workers: int | None = None,
    part: tuple[int, int] = (1, 1),
    limit: int | None = None,
    manifest: str | Path | None = None,
    executor: str = "local",
) -> Summary:
    """Extract the RLDS data set `source` to the tree `output`, or what is left to do of it.

    workers:  processes of the executor "local"; all cores if None
    part:     (i, n): the i-th of n parts, i from 1; parts may run at once, on several machines
    limit:    only the first so many episodes of the data set
    manifest: folder of the manifest; `<output>.manifest` if None
    executor: "local": this machine's cores. "ray": all cores of a Ray cluster (see `ray_engine`)

    Raises UserError for bad input, a full disk, a killed worker, an interruption: then, too, all
    episodes in the tree are whole, and the same call continues. Ray replaces a killed worker: what
    that one had written counts as "already there".
    """
    started = time.monotonic()
    options = options or Options()
    dataset = RldsDataset.open(source)
    options.check(dataset)
    _check_numbers(part, limit)
    _check_executor(executor, workers)
    output = Path(output).resolve()
    folder = Path(manifest).resolve() if manifest else output.with_name(f"{output.name}.manifest")
    book = Manifest(folder, output, _PATIENCE_S[executor])
    book.begin({"dataset": _identity(dataset), **asdict(options), "cameras": list(options.cameras)})
    kept = f"; every episode in {output} is whole, and the same command continues"
    with _open_executor(executor, workers, len(dataset.shards), kept) as run:
        names = book.known_names(dataset.shards)
        if names is None:
            names = _scan_names(run, dataset)
            book.keep_names(dataset.shards, names)
        shares = _shares(dataset, names, part, limit)
        tasks = {
            number: ShardTask(
                dataset.narrow(number),
                tuple(names[number]),
                None if limit is None else count,
                options,
                book,
            )
            for number, count in shares.items()
        }
        with progress_bar(None, "extracting", "episode", sum(shares.values())) as bar:
            results = run.extract(tasks, functools.partial(_show, bar, len(options.cameras)))
    return Summary(
        results=results,
        num_cameras=len(options.cameras),
        num_expected=sum(shares.values()) if dataset.episodes else None,
        missing=missing_shards(dataset.shards),
        manifest=folder,
        seconds=time.monotonic() - started,
    )


def _check_numbers(part: tuple[int, int], limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give at least 1")
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"--shard {part[0]}/{part[1]}: give i/n with i from 1 to n")


def _check_executor(executor: str, workers: int | None) -> None:
    require_choice("--engine", executor, EXECUTORS)
    if executor == "ray" and workers is not None:
        raise UserError(
            f"--workers {workers}: a Ray cluster has the cores that its nodes were started with "
            "(ray start --num-cpus); leave --workers out"
        )


def _identity(dataset: RldsDataset) -> str:
    base = dataset.shards[0].name.partition(".tfrecord-")[0]
    return f"{base} in {len(dataset.shards) + len(missing_shards(dataset.shards))} shards"


def _shares(
    dataset: RldsDataset, names: list[list[str]], part: tuple[int, int], limit: int | None
) -> dict[int, int]:
    """Shard number -> how many of its records fall to this run."""
    lengths = dataset.episodes or [len(shard_names) for shard_names in names]
    starts = itertools.accumulate(lengths, initial=0)
    shares = {}
    for number, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        count = length if limit is None else min(length, limit - start)
        if number % part[1] == part[0] - 1 and (limit is None or count > 0):
            shares[number] = count
    return shares


def _scan_names(run: _Executor, dataset: RldsDataset) -> list[list[str]]:
    """Folder names of all records of all shards: of all, so that no split of the work matters."""
    paths = run.map(scan_file_paths, dataset.shards)
    scanned = list(progress_bar(paths, "scanning", "shard", len(dataset.shards)))
    names = iter(unique_names([path for shard_paths in scanned for path in shard_paths]))
    return [list(itertools.islice(names, len(shard_paths))) for shard_paths in scanned]


# --------------------------------------------------------------------------- executors

# The system frees the lock of a process that dies at once; of a node that dies, a network file
# system frees it when its lease runs out (NFS: 90 s), and Ray tries again before that.
_PATIENCE_S = {"local": 10.0, "ray": 120.0}

_Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
_Show = Callable[[int, int], None]


class _Executor(NamedTuple):
    """Two ways to use the same workers.

    map:     a function over items, results in order
    extract: `extract_shard` of every task (by shard number); shows how many episodes are done by
             now, and how many steps of them it wrote
    """

    map: _Map
    extract: Callable[[dict[int, ShardTask], _Show], list[ShardResult]]


def _show(bar: tqdm, num_cameras: int, episodes: int, steps: int) -> None:
    rate = steps * num_cameras / (bar.format_dict["elapsed"] or 1)
    bar.set_postfix_str(f"{rate:,.0f} frames/s", refresh=False)
    bar.update(episodes - bar.n)


@contextlib.contextmanager
def _open_executor(
    executor: str, workers: int | None, num_shards: int, reassurance: str
) -> Iterator[_Executor]:
    if executor == "ray":
        from mcr.runs.ray_engine import ray_cluster, ray_map  # an extra

        with ray_cluster(reassurance):
            yield _Executor(ray_map, _extract_on_ray)
        return
    board = _Board(num_shards)
    workers = min(num_cores() if workers is None else workers, num_shards)
    with process_pool(workers, reassurance, _take_board, (board,)) as pool, board.stopping():
        yield _Executor(pool.map, functools.partial(_extract_in_pool, pool, board))


def _extract_on_ray(tasks: dict[int, ShardTask], show: _Show) -> list[ShardResult]:
    """The bar moves with every shard that is done."""
    from mcr.runs.ray_engine import ray_completed

    results: dict[int, ShardResult] = {}
    episodes = steps = 0
    for position, result in ray_completed(extract_shard, tasks.values()):
        results[position] = result
        episodes += len(result.outcomes)
        steps += sum(o.steps for o in result.outcomes if o.status == WRITTEN)
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
        """Make the workers stop at the end of this block, after the episode they are at."""
        try:
            yield
        finally:
            self.stop.value = 1


_board: _Board  # in worker processes


def _take_board(board: _Board) -> None:
    global _board
    _board = board


class _Stopped(Exception):
    """Another worker failed, or the user interrupted: the next run does the rest of this shard."""


def _extract_on_board(number: int, task: ShardTask) -> ShardResult:
    def post(outcome: Outcome) -> None:
        _board.episodes[number] += 1
        _board.steps[number] += outcome.steps if outcome.status == WRITTEN else 0
        if _board.stop.value:
            raise _Stopped

    if _board.stop.value:
        raise _Stopped
    return extract_shard(task, post)


def _extract_in_pool(
    pool: ProcessPoolExecutor, board: _Board, tasks: dict[int, ShardTask], show: _Show
) -> list[ShardResult]:
    """The bar moves with every episode."""
    futures = [pool.submit(_extract_on_board, number, task) for number, task in tasks.items()]
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        show(sum(board.episodes), sum(board.steps))
        for future in done:
            future.result()  # raises what the worker raised
    return [future.result() for future in futures]
