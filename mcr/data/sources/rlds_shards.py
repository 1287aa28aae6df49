"""The shards of an RLDS data set: which files they are, of which split, and what they should hold.

`dataset_info.json` says so, where it exists: the names of the splits, a template of the names of
their files, and how many records each shard holds. Without it, shards have TFDS's usual names:

    <data set>-<split>.tfrecord-00000-of-00031
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcr.data.regular_files import read_json
from mcr.data.sources.source import DAMAGE
from mcr.errors import UserError

_MAX_SHARDS = 2**17
_MAX_RECORDS = 2**17  # of a shard; a wrong number must not fill the memory with lost episodes
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_PARTS = {
    "DATASET": r"(?P<dataset>.+?)",
    "SPLIT": "",
    "FILEFORMAT": "tfrecord",
    "SHARD_INDEX": r"(?P<index>\d{5,})",
    "NUM_SHARDS": r"(?P<total>\d{5,})",
    "SHARD_X_OF_Y": r"(?P<index>\d{5,})-of-(?P<total>\d{5,})",
}
_ANY_SHARD = re.compile(
    r"(?P<dataset>.+?)(-(?P<split>\w+))?\.tfrecord-(?P<index>\d{5,})-of-(?P<total>\d{5,})"
)


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    dataset: what the names of its files begin with, mostly the name of the data set
    shards:  number of the shard -> file; those that the folder holds
    total:   number of shards of the whole split
    lengths: number of records that each of all shards holds; None if nothing says
    """

    name: str
    dataset: str
    shards: dict[int, Path]
    total: int
    lengths: tuple[int, ...] | None

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that the folder lacks."""
        return sorted(set(range(self.total)) - set(self.shards))

    def records_before(self, shard: int) -> int | None:
        """How many records of the split lie in earlier shards? None if nothing says."""
        return None if self.lengths is None else sum(self.lengths[:shard])


@dataclass(frozen=True)
class _Stated:
    """What `dataset_info.json` says of a split."""

    name: str
    template: str
    lengths: tuple[int, ...]


def read_name(root: Path) -> str:
    """Return what `dataset_info.json` calls the data set, or ""."""
    name = _read_info(root).get("name", "")
    return name if isinstance(name, str) else ""


def find_splits(root: Path) -> list[Split]:
    """Find the shards in the version folder `root`, by split.

    Raises UserError for a damaged `dataset_info.json`, for no shards, and for shards of several
    data sets.
    """
    stated = _read_stated(root)
    splits = list(_splits(root, stated))
    if not any(split.shards for split in splits):
        names = " or ".join(dict.fromkeys(s.template for s in stated)) or _TEMPLATE
        raise UserError(f"{root}: no shards ({names}); is the download complete?")
    return splits


def _splits(root: Path, stated: list[_Stated]) -> Iterator[Split]:
    """Yield the splits that are stated, in that order, then others of which there are files."""
    lengths = {split.name: split.lengths for split in stated}
    found: dict[str, dict[tuple[str, int], dict[int, Path]]] = {name: {} for name in lengths}
    for path in sorted(root.iterdir()):
        if match := _match(path.name, stated):
            name, dataset, number, total = match
            if not path.is_file():
                raise UserError(f"{path}: is no regular file; download the shard again")
            if total > _MAX_SHARDS:
                raise UserError(
                    f"{path}: its name tells of {total:,} shards; at most {_MAX_SHARDS:,} are read"
                )
            files = found.setdefault(name, {})
            files.setdefault((dataset, total), {})[number] = path
    for name, files in found.items():
        if len(files) > 1 or any(max(shards) >= total for (_, total), shards in files.items()):
            names = ", ".join(f"{dataset} in {total} shards" for dataset, total in files)
            raise UserError(
                f"{root}: shards of several data sets lie in one folder ({name}: {names}); keep one"
            )
        known = lengths.get(name)
        (dataset, total), shards = next(iter(files.items()), (("", len(known or ())), {}))
        is_of_these = known is not None and len(known) == total
        yield Split(name, dataset, shards, total, known if is_of_these else None)


def _match(file: str, stated: list[_Stated]) -> tuple[str, str, int, int] | None:
    """Return split, data set, number and total of the shard that a file name means, or None."""
    if file.startswith("."):
        return None
    for split in stated:
        if match := _pattern(split).fullmatch(file):
            groups = match.groupdict()
            total = int(groups.get("total", len(split.lengths)))
            return split.name, groups.get("dataset", ""), int(groups.get("index", 0)), total
    if match := _ANY_SHARD.fullmatch(file):
        return match["split"] or "train", match["dataset"], int(match["index"]), int(match["total"])
    return None


@functools.cache
def _pattern(split: _Stated) -> re.Pattern[str]:
    """Return a pattern of the names of a split's files."""
    parts = {**_PARTS, "SPLIT": re.escape(split.name)}
    pieces = []
    if split.template.count("{DATASET}") > 2:  # many of them match in too many ways
        raise ValueError("it names the data set more than twice")
    for position, piece in enumerate(re.split(r"\{(\w+)\}", split.template)):
        pieces.append(parts[piece] if position % 2 else re.escape(piece))
        if position % 2:
            parts[piece] = ".+"  # a group may be named once
    return re.compile("".join(pieces))


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "dataset_info.json"
    if not path.is_file():
        return {}
    try:
        info = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a TFDS dataset_info.json ({error})") from error
    if not isinstance(info, dict) or "splits" not in info:
        raise UserError(f"{path}: not a TFDS dataset_info.json (it names no splits)")
    return info


def _check_numbers(stated: list[_Stated]) -> None:
    """Raise ValueError for numbers of records or shards that no data set has."""
    for split in stated:
        if len(split.lengths) > _MAX_SHARDS:
            raise ValueError(f"{split.name} has {len(split.lengths):,} shards")
        for length in split.lengths:
            if not 0 <= length <= _MAX_RECORDS:
                raise ValueError(f"a shard of {split.name} has {length:,} records")


def _read_stated(root: Path) -> list[_Stated]:
    """Return what `dataset_info.json` says; [] if there is none. Raises UserError."""
    info, path = _read_info(root), root / "dataset_info.json"
    try:
        stated = [
            _Stated(
                str(split["name"]),
                str(split.get("filepathTemplate") or _TEMPLATE),
                tuple(int(length) for length in split.get("shardLengths", ())),
            )
            for split in info.get("splits", ())
        ]
        _check_numbers(stated)
    except DAMAGE as error:
        raise UserError(f"{path}: not a TFDS dataset_info.json ({error})") from error
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise UserError(
            f"{path}: the shards are {info['fileFormat']} files; only tfrecord can be read"
        )
    for split in stated:
        try:
            _pattern(split)
        except (KeyError, ValueError, re.error) as error:
            raise UserError(
                f"{path}: the filepathTemplate {split.template!r} is none of TFDS's ({error})"
            ) from error
    return stated
