"""Checks every record of an RLDS data set by its checksum: `mcr inspect --verify`.

Indexing and training check records too, but only those that they read, and an index that exists is
not built again. This reads all shards of all splits, after a download or a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mcr.data.sources import open_source
from mcr.data.sources.rlds import RldsSource
from mcr.data.sources.rlds_shards import Split, find_splits
from mcr.data.tfrecord import read_records
from mcr.errors import UserError
from mcr.runs.processes import ordered_map, progress_bar

# Why other formats cannot be verified, and what reads all of them.
_WITHOUT_CHECKSUMS = {
    "tree": "a tree has no checksums of its own; `mcr clean` decodes all its pictures",
    "lerobot": "LeRobot's files have no checksums of records; `mcr index --pack` decodes them all",
    "hdf5": "HDF5 files have no checksums of records; `mcr index --pack` decodes all pictures",
    "media": "videos have no checksums of records; `mcr index --pack` decodes all pictures",
}


@dataclass(frozen=True)
class Shard:
    """One shard: how many records it should hold (None if nothing says), and what it holds.

    num_damaged: records whose checksum is wrong; what follows a damaged length counts as one
    problem:     the first of them, with its byte
    """

    path: Path
    num_stated: int | None
    num_records: int = 0
    num_damaged: int = 0
    problem: str = ""

    def complaints(self) -> Iterator[str]:
        """Yield what is wrong with the shard."""
        if self.num_damaged:
            yield f"damaged: {self.path.name}, {self.num_damaged:,} records, first {self.problem}"
        elif self.num_stated not in (None, self.num_records):
            yield (
                f"damaged: {self.path.name} holds {self.num_records:,} records, "
                f"dataset_info.json says {self.num_stated:,}"
            )


@dataclass(frozen=True)
class Verification:
    """What was read of a data set. `str` of it is the report."""

    root: Path
    shards: tuple[Shard, ...]
    splits: tuple[Split, ...]

    @property
    def complaints(self) -> list[str]:
        """What is damaged or missing, a line each; none if all is well."""
        damaged = [line for shard in self.shards for line in shard.complaints()]
        missing = [
            f"missing: of {split.name}, the shards {', '.join(map(str, split.missing))}"
            for split in self.splits
            if split.missing
        ]
        return damaged + missing

    def __str__(self) -> str:
        records = sum(shard.num_records for shard in self.shards)
        size = sum(shard.path.stat().st_size for shard in self.shards) / 1e9
        total = sum(split.total for split in self.splits)
        lines = [
            f"{self.root}: {len(self.shards):,} of {total:,} shards read, "
            f"{records:,} sound records, {size:,.3f} GB"
        ]
        if any(shard.num_stated is None for shard in self.shards):
            lines.append("unknown: how many records the shards should hold; no dataset_info.json")
        if not self.complaints:
            return "\n".join([*lines, "nothing is damaged or missing"])
        fix = "fetch these shards again: bash scripts/download_droid.sh OUTPUT --check, for DROID"
        return "\n".join([*lines, *self.complaints, fix])


def verify_checksums(path: Path, workers: int = 0) -> Verification:
    """Read every record of an RLDS data set and compare it with its CRC32C.

    path:    the version folder
    workers: number of processes; 0 starts one per core

    Raises UserError for a data set of another format, and for none.
    """
    source = open_source(path)
    if not isinstance(source, RldsSource):
        raise UserError(f"--verify {path}: {_WITHOUT_CHECKSUMS[source.kind]}")
    splits = find_splits(source.root)
    shards = [
        Shard(file, split.lengths[number] if split.lengths else None)
        for split in splits
        for number, file in split.shards.items()
    ]
    read = ordered_map(read_shard, shards, 1 if source.is_small() else workers)
    with progress_bar(read, "verify", "shard", len(shards)) as bar:
        return Verification(source.root, tuple(bar), tuple(splits))


def read_shard(shard: Shard) -> Shard:
    """Return the shard with what was found in it."""
    records = damaged = 0
    problem = ""
    for record in read_records(shard.path):
        if record.payload is None:
            damaged += 1
            problem = problem or f"at byte {record.offset:,}: {record.problem}"
        else:
            records += 1
    return Shard(shard.path, shard.num_stated, records, damaged, problem)
