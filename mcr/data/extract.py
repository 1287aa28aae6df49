"""Extraction: RLDS shards -> the PNG/pickle tree, in parallel. It can be resumed and loses nothing.

`extract_shard.py` does one shard, `extract_executors.py` runs it on many. Pictures never travel
between processes, so memory grows with the workers and not with the data set.

Every record ends as written, already there, skipped (by a rule) or failed (with the error), and
the manifest says which. An extraction that is killed at any moment and run again gives the same
tree, byte for byte.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mcr.data.droid import RldsDataset, missing_shards, scan_file_paths
from mcr.data.episode import unique_names
from mcr.data.extract_executors import PATIENCE_S, Executor, check_executor, open_executor
from mcr.data.extract_shard import Options, ShardResult, ShardTask
from mcr.data.manifest import FAILED, SKIPPED, STATUSES, WRITTEN, Manifest, RecordResult
from mcr.errors import UserError
from mcr.runs.processes import progress_bar


@dataclass(frozen=True)
class Summary:
    """The account of one run. `str()` gives the report that the script prints.

    num_expected: number of records according to `dataset_info.json`; None if it does not say
    missing:      numbers of the shards that the input lacks
    """

    results: list[ShardResult]
    num_cameras: int
    num_expected: int | None
    missing: list[int]
    manifest: Path
    seconds: float

    @property
    def records(self) -> list[tuple[Path, RecordResult]]:
        """Each record's shard and result."""
        return [(result.shard, record) for result in self.results for record in result.records]

    @property
    def counts(self) -> dict[str, int]:
        """Number of records by status."""
        found = Counter(record.status for _, record in self.records)
        return {status: found[status] for status in STATUSES}

    def __str__(self) -> str:
        counts = self.counts
        rules = Counter(r.reason for _, r in self.records if r.status == SKIPPED)
        lines = [f"{count:9,} {status}" for status, count in counts.items()]
        lines += [f"{'':10}{count:,} by {rule}" for rule, count in rules.items()]
        total = f"{sum(counts.values()):9,} episodes in {len(self.results):,} shards"
        if self.num_expected not in (None, sum(counts.values())):
            total += f"; dataset_info.json says {self.num_expected:,}"
        return "\n".join([*lines, total, self._speed(), *self._warnings()])

    def _speed(self) -> str:
        steps = sum(record.steps for _, record in self.records if record.status == WRITTEN)
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
        failed = [(shard, record) for shard, record in self.records if record.status == FAILED]
        for shard, record in failed[:10]:
            yield f"failed: {shard.name} at byte {record.offset}: {record.reason}"
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

    workers:  processes of the executor "local"; None = one per core
    part:     (i, n): do part i of n, counted from 1; parts may run at once, on several machines
    limit:    number of episodes of the data set to extract; None = all
    manifest: folder of the manifest; None = `<output>.manifest`
    executor: "local": the cores of this machine; "ray": all cores of a Ray cluster

    Raises UserError for bad input, a full disk, a killed worker and an interruption. Then all
    episodes in the tree are whole, and the same call continues. Ray replaces a killed worker; the
    episodes that this worker wrote count as "already there".
    """
    started = time.monotonic()
    options = options or Options()
    dataset = RldsDataset.open(source)
    options.check(dataset)
    _check_numbers(part, limit)
    check_executor(executor, workers)
    output = Path(output).resolve()
    folder = Path(manifest).resolve() if manifest else output.with_name(f"{output.name}.manifest")
    book = Manifest(folder, output, PATIENCE_S[executor])
    book.begin({"dataset": _identity(dataset), **asdict(options), "cameras": list(options.cameras)})
    kept = f"; every episode in {output} is whole, and the same command continues"
    with open_executor(executor, workers, len(dataset.shards), kept) as run:
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


def _identity(dataset: RldsDataset) -> str:
    base = dataset.shards[0].name.partition(".tfrecord-")[0]
    return f"{base} in {len(dataset.shards) + len(missing_shards(dataset.shards))} shards"


def _shares(
    dataset: RldsDataset, names: list[list[str]], part: tuple[int, int], limit: int | None
) -> dict[int, int]:
    """Return how many records of each shard this run does, by the shard's number."""
    lengths = dataset.episodes or [len(shard_names) for shard_names in names]
    starts = itertools.accumulate(lengths, initial=0)
    shares = {}
    for number, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        count = length if limit is None else min(length, limit - start)
        if number % part[1] == part[0] - 1 and (limit is None or count > 0):
            shares[number] = count
    return shares


def _scan_names(run: Executor, dataset: RldsDataset) -> list[list[str]]:
    """Return the folder names of all records, by shard. They do not depend on `part`."""
    paths = run.map(scan_file_paths, dataset.shards)
    scanned = list(progress_bar(paths, "scanning", "shard", len(dataset.shards)))
    names = iter(unique_names([path for shard_paths in scanned for path in shard_paths]))
    return [list(itertools.islice(names, len(shard_paths))) for shard_paths in scanned]


def _show(bar: tqdm, num_cameras: int, episodes: int, steps: int) -> None:
    rate = steps * num_cameras / (bar.format_dict["elapsed"] or 1)
    bar.set_postfix_str(f"{rate:,.0f} frames/s", refresh=False)
    bar.update(episodes - bar.n)
