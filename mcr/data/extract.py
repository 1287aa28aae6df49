"""Extraction: any data set -> the PNG/pickle tree, in parallel. It can be resumed, loses nothing.

`extract_shard.py` does one shard or other part, `extract_executors.py` runs it on many. Pictures
never travel between processes, so memory grows with the workers and not with the data set.

Every record ends as written, already there, skipped (by a rule) or failed (with the error), and
the manifest says which. An extraction that is killed at any moment and run again gives the same
tree, byte for byte.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
from tqdm import tqdm

from mcr.data.episode import unique_names
from mcr.data.extract_executors import PATIENCE_S, Executor, check_executor, open_executor
from mcr.data.extract_shard import Options, ShardResult, ShardTask, scan_origins
from mcr.data.manifest import FAILED, SKIPPED, STATUSES, WRITTEN, Manifest, Page, RecordResult
from mcr.data.schema import Schema, load_schema
from mcr.data.sources import open_source
from mcr.data.sources.rlds import RldsSource, Shard
from mcr.data.sources.source import Part, Source
from mcr.errors import UserError
from mcr.runs.processes import progress_bar


@dataclass(frozen=True)
class Summary:
    """The account of one run. `str()` gives the report that the script prints.

    num_expected: number of records according to `dataset_info.json`; None if nothing says
    missing:      numbers of the shards that the input lacks
    parts:        what the parts of the data set are called: "shards", or "parts"
    """

    results: list[ShardResult]
    num_cameras: int
    num_expected: int | None
    missing: list[str]
    parts: str
    manifest: Path
    seconds: float

    @property
    def records(self) -> list[tuple[Page, RecordResult]]:
        """Each record's page of the manifest, and its result."""
        return [(result.page, record) for result in self.results for record in result.records]

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
        total = f"{sum(counts.values()):9,} episodes in {len(self.results):,} {self.parts}"
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
            numbers = ", ".join(self.missing[:10]) + ", ..." * (len(self.missing) > 10)
            yield f"warning: {len(self.missing):,} shards are not in the input: {numbers}"
        failed = [(page, record) for page, record in self.records if record.status == FAILED]
        for page, record in failed[:10]:
            place = f"{page.name} at byte {record.offset}: " if page.is_shard else ""
            yield f"failed: {place}{record.reason}"
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
    schema: str | Path | Mapping[str, Any] | None = None,
) -> Summary:
    """Extract the data set `source`, of any format, to the tree `output`, or what is left to do.

    workers:  processes of the executor "local"; None = one per core
    part:     (i, n): do part i of n, counted from 1; parts may run at once, on several machines
    limit:    number of episodes of the data set to extract; None = all
    manifest: folder of the manifest; None = `<output>.manifest`
    executor: "local": the cores of this machine; "ray": all cores of a Ray cluster
    schema:   what `load_schema` takes; None = what is known of the data set

    Raises UserError for bad input, a full disk and an interruption. Then all episodes in the tree
    are whole, and the same call continues. A killed worker is replaced; the episodes that it wrote
    count as "already there". An episode that kills its worker twice counts as failed.
    """
    started = time.monotonic()
    opened = _open(Path(source), schema)
    options = (options or Options()).resolve(opened)
    _check_numbers(part, limit)
    check_executor(executor, workers)
    output = Path(output).resolve()
    folder = Path(manifest).resolve() if manifest else output.with_name(f"{output.name}.manifest")
    book = Manifest(folder, output, PATIENCE_S[executor])
    book.begin({"dataset": _identity(opened), **_options(options, opened.schema)})
    parts, pages, has_decoder = opened.parts(), _pages(opened), _has_decoder(opened)
    kept = f"; every episode in {output} is whole, and the same command continues"
    with open_executor(executor, workers, len(parts), kept) as run:
        names = book.known_names(pages)
        if names is None:
            names = _scan_names(run, parts)
            book.keep_names(pages, names)
        shares = _shares(parts, names, part, limit)
        tasks = {
            number: ShardTask(
                part=parts[number],
                page=pages[number],
                names=tuple(names[number]),
                limit=None if limit is None else count,
                options=options,
                manifest=book,
                path=opened.path,
                root=opened.root,
                schema=opened.schema,
                has_decoder=has_decoder,
            )
            for number, count in shares.items()
        }
        with progress_bar(None, "extracting", "episode", sum(shares.values())) as bar:
            results = run.extract(tasks, functools.partial(_show, bar, len(options.cameras)))
    return Summary(
        results=results,
        num_cameras=len(options.cameras),
        num_expected=sum(shares.values()) if None not in map(_stated_length, parts) else None,
        missing=opened.missing() if isinstance(opened, RldsSource) else [],
        parts="shards" if isinstance(opened, RldsSource) else "parts",
        manifest=folder,
        seconds=time.monotonic() - started,
    )


def _open(path: Path, schema: str | Path | Mapping[str, Any] | None) -> Source:
    source = open_source(path, None if schema is None else load_schema(schema))
    if source.kind == "tree":
        raise UserError(f"{path}: is a tree already; extraction makes a tree of another format")
    return source


def _has_decoder(source: Source) -> bool:
    decoder = source.decoder()
    if decoder is not None:
        decoder.close()
    return decoder is not None


def _options(options: Options, schema: Schema) -> dict[str, Any]:
    return {**asdict(options), "cameras": list(options.cameras), "schema": schema.reads()}


def _pages(source: Source) -> list[Page]:
    """Return the page of the manifest of each part."""
    stamp = google_crc32c.value(json.dumps(source.stamp(), sort_keys=True).encode())
    return [
        Page.of_shard(part.path)
        if isinstance(part, Shard)
        else Page(f"part-{number:05d}", (stamp, part.size), is_shard=False)
        for number, part in enumerate(source.parts())
    ]


def _stated_length(part: Part) -> int | None:
    """Return how many records a part holds by what the data set states; None if it does not."""
    return part.num_records if isinstance(part, Shard) else None


def _check_numbers(part: tuple[int, int], limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give at least 1")
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"--shard {part[0]}/{part[1]}: give i/n with i from 1 to n")


def _identity(source: Source) -> str:
    return source.describe() if isinstance(source, RldsSource) else f"{source.kind} {source.name}"


def _shares(
    parts: Sequence[Part], names: list[list[str]], part: tuple[int, int], limit: int | None
) -> dict[int, int]:
    """Return how many records of each part this run does, by the part's number."""
    stated = map(_stated_length, parts)
    lengths = [n if n is not None else len(found) for n, found in zip(stated, names, strict=True)]
    starts = itertools.accumulate(lengths, initial=0)
    shares = {}
    for number, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        count = length if limit is None else min(length, limit - start)
        if number % part[1] == part[0] - 1 and (limit is None or count > 0):
            shares[number] = count
    return shares


def _scan_names(run: Executor, parts: Sequence[Part]) -> list[list[str]]:
    """Return the folder names of all episodes, by part. They do not depend on --shard."""
    origins = run.map(scan_origins, parts)
    scanned = list(progress_bar(origins, "scanning", "part", len(parts)))
    names = iter(unique_names([origin for found in scanned for origin in found]))
    return [list(itertools.islice(names, len(found))) for found in scanned]


def _show(bar: tqdm, num_cameras: int, episodes: int, steps: int) -> None:
    rate = steps * num_cameras / (bar.format_dict["elapsed"] or 1)
    bar.set_postfix_str(f"{rate:,.0f} frames/s", refresh=False)
    bar.update(episodes - bar.n)
