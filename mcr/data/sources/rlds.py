"""RLDS: TFRecord shards of any schema, as TensorFlow Datasets and Open X-Embodiment have them.

    <version folder>/features.json                 what fields a record has, see `rlds_features.py`
                     dataset_info.json             splits and shards, see `rlds_shards.py`; optional
                     <data set>-<split>.tfrecord-00000-of-00031       one record per episode

Pictures are byte ranges of a shard. Reading checks every CRC and copies nothing but the numbers.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from mcr.data.episode import Episode, Origin
from mcr.data.schema import LANGUAGES, Schema, is_large, names_of
from mcr.data.sources.rlds_features import Field, Layout, read_fields
from mcr.data.sources.rlds_shards import Split, find_splits, read_name
from mcr.data.sources.schema_check import Keys, choose_schema
from mcr.data.sources.source import DAMAGE, WORTH_PROCESSES
from mcr.data.tf_example import parse_example
from mcr.data.tfrecord import BadRecord, Record, payload_ranges, read_records
from mcr.errors import UserError

_FILE_PATH = "episode_metadata/file_path"  # of the original recording, where a data set has it


class RldsSource:
    """An RLDS data set. Its parts are its shards, split by split.

    splits: those that are read
    """

    kind: ClassVar = "rlds"
    unit: ClassVar = "B"

    def __init__(self, path: Path, schema: Schema | None = None):
        """path: the version folder, or a folder with a single version inside"""
        self.path = self.root = root = _version_folder(Path(path))
        fields = {field.key: field for field in read_fields(root / "features.json")}
        splits = find_splits(root)
        self.name = read_name(root) or next(s.dataset for s in splits if s.shards)
        keys = _keys(fields.values(), splits)
        if not keys.cameras:
            raise UserError(f"{root}/features.json: the steps have no pictures (Image features)")
        self.schema = _complete(choose_schema(root, self.name, schema, keys), fields)
        self.cameras = self.schema.cameras or _cameras(fields.values())
        self.splits = [s for s in splits if not self.schema.splits or s.name in self.schema.splits]
        if not any(split.shards for split in self.splits):
            raise UserError(
                f"{root}: no shards of {', '.join(self.schema.splits)}, the splits of the schema"
            )
        self._layout = _layout(self.schema, fields, self.cameras)

    @staticmethod
    def recognises(path: Path) -> bool:
        # The pattern of a version (1.0.1) is not "*", which would open each of the 100,000 episodes
        # of a tree and take seconds.
        if not path.is_dir():
            return False
        return (path / "features.json").is_file() or any(path.glob("*.*.*/features.json"))

    def parts(self) -> list[Shard]:
        return [
            Shard(
                path=path,
                layout=self._layout,
                split=split.name,
                number=number,
                first=split.records_before(number),
                num_records=None if split.lengths is None else split.lengths[number],
            )
            for split in self.splits
            for number, path in split.shards.items()
        ]

    def describe(self) -> str:
        """Return what tells this data set from others: the names of its files and their number."""
        dataset = next(split.dataset for split in self.splits if split.shards)
        return ", ".join(
            f"{split.dataset or dataset}-{split.name} in {split.total} shards"
            for split in self.splits
        )

    def missing(self) -> list[str]:
        """Return the numbers of the shards that the folder lacks, as "val 3" if it has splits."""
        prefix = len(self.splits) > 1
        return [
            f"{split.name} {number}" if prefix else str(number)
            for split in self.splits
            for number in split.missing
        ]

    def lacks(self) -> list[str]:
        missing = self.missing()
        numbers = ", ".join(missing[:10]) + ", ..." * (len(missing) > 10)
        return [f"{len(missing):,} shards are not in the folder: {numbers}"] if missing else []

    def is_small(self) -> bool:
        return sum(self.stamp().values()) < WORTH_PROCESSES

    def stamp(self) -> dict[str, int]:
        """The size of each shard."""
        return {
            path.name: path.stat().st_size
            for split in self.splits
            for path in split.shards.values()
        }

    def decoder(self) -> None:
        return None


def _version_folder(root: Path) -> Path:
    """Return `root`, or the only version inside. Raises UserError if there is not just one."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the data set's version folder")
    if (root / "features.json").is_file():
        return root
    versions = sorted(path.parent for path in root.glob("*/features.json"))
    if len(versions) != 1:
        found = f"; choose one of {[str(v) for v in versions]}" if versions else ""
        raise UserError(
            f"{root}: no features.json; give the RLDS version folder (droid/1.0.1){found}"
        )
    return versions[0]


# --------------------------------------------------------------------------- schema


def _keys(fields: Iterable[Field], splits: list[Split]) -> Keys:
    """Return what a schema may name. A dictionary of numbers counts, too."""
    of_kind: dict[str, list[str]] = {"picture": [], "number": [], "text": []}
    for field in fields:
        if field.is_of_steps or field.kind != "picture":
            of_kind[field.kind].append(field.key)
    groups = {key.rpartition("/")[0] for key in of_kind["number"]}
    return Keys(
        cameras=of_kind["picture"],
        signals=[*of_kind["number"], *sorted(groups - {"", "observation", "episode_metadata"})],
        texts=of_kind["text"],
        splits=[split.name for split in splits],
    )


def _cameras(fields: Iterable[Field]) -> dict[str, str]:
    """Return camera -> key of all pictures but maps of depth, which have other types than uint8."""
    keys = [f.key for f in fields if f.is_of_steps and f.kind == "picture" and f.dtype == "uint8"]
    return {name: key for key, name in names_of(sorted(keys)).items()}


def _complete(schema: Schema, fields: dict[str, Field]) -> Schema:
    """Fill in what the data set tells: instructions, and flags that say which cameras there are."""
    recording = schema.recording
    has_path = not recording.key and _FILE_PATH in fields and fields[_FILE_PATH].kind == "text"
    instructions = sorted(f.key for f in fields.values() if f.kind == "text" and _instructs(f.key))
    flags = {
        camera: flag
        for camera in schema.cameras or _cameras(fields.values())
        if (flag := f"episode_metadata/has_{camera}") in fields and fields[flag].kind == "number"
    }
    return replace(
        schema,
        language=schema.language or tuple(instructions[: len(LANGUAGES)]),
        present=schema.present or flags,
        recording=replace(recording, key=_FILE_PATH) if has_path else recording,
    )


def _instructs(key: str) -> bool:
    name = key.rpartition("/")[2]
    return "instruction" in name or name in ("language", "task")


def _layout(schema: Schema, fields: dict[str, Field], cameras: dict[str, str]) -> Layout:
    numbers = [f for f in fields.values() if f.is_of_steps and f.kind == "number"]
    names = names_of(field.key for field in numbers)
    by_name = {**{name: fields[key] for key, name in names.items()}, **fields}
    named = {*schema.signals, *schema.state, *schema.action}
    groups = tuple(f"{name}/" for name in named)

    def is_named(key: str) -> bool:
        return any(name in named or name.startswith(groups) for name in (key, names[key]))

    return Layout(
        cameras={camera: fields[key].feature for camera, key in cameras.items()},
        present={camera: by_name[key].feature for camera, key in schema.present.items()},
        signals={
            names[field.key]: field
            for field in numbers
            if not is_large(field.size) or is_named(field.key)
        },
        languages=tuple(fields[key].feature for key in schema.language),
        file_path=fields[schema.recording.key].feature if schema.recording.key else "",
        recording=schema.recording,
    )


# --------------------------------------------------------------------------- shards


@dataclass(frozen=True)
class Shard:
    """One shard.

    number:      of the shard in its split
    first:       how many records of the split lie before it; None if nothing says
    num_records: how many it should hold; None if nothing says
    """

    path: Path
    layout: Layout
    split: str
    number: int
    first: int | None
    num_records: int | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    def pieces(self) -> list[tuple[str, Shard]]:
        """Return this shard: where its records begin is not known before it is read."""
        return [(str(self.path), self)]

    def episodes(self) -> Iterator[Episode | str]:
        """Yield every episode and, for each lost one, a sentence.

        The caller should drop an episode before it asks for the next, because one may have 100 MB.
        """
        for _, episode in self.entries():
            yield f"{episode}" if isinstance(episode, BadRecord) else episode
            del episode

    def entries(self) -> Iterator[tuple[int, Episode | BadRecord]]:
        """Yield every record that the shard should hold as (first byte of its payload, episode)."""
        numbers = itertools.count()
        for record in self._records():
            entry = record.offset, self._parse(record, next(numbers))
            del record  # before the next one is read: a long episode is over 100 MB
            yield entry
            del entry

    def _parse(self, record: Record, number: int) -> Episode | BadRecord:
        try:
            key = f"{self.split}-{self.number:05d}/{number}"
            return self.layout.parse(record, key, self._fallback(number), self.split)
        except BadRecord as error:
            return error.with_traceback(None)  # it would keep the payload alive

    def _fallback(self, number: int) -> str:
        """Return the name of an episode whose path tells none: by its number in the split."""
        if self.first is None:
            return f"{self.split}_{self.number:05d}_{number:04d}"
        return f"{self.split}_{self.first + number:06d}"

    def _records(self) -> Iterator[Record]:
        """Yield every record, with damaged ones and, if it is known how many there are, lost ones.

        One damaged record stands for the rest of a shard that ends early, see `read_records`.
        """
        count = 0
        for record in read_records(self.path):
            count += 1
            yield record
            del record
        for number in range(count, self.num_records or 0):
            problem = (
                f"episode {number + 1} of {self.num_records} is lost: the shard ends before it"
            )
            yield Record(self.path, self.path.stat().st_size, None, problem)

    def origins(self) -> list[Origin | None]:
        """Return where each episode comes from, in order; None where that cannot be told.

        This reads a few pages per record and computes no checksum. Names must be known before the
        work is split, and the reader that follows checks every byte.
        """
        if self.path.stat().st_size == 0:
            return []
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer,
        ):
            buffer.madvise(mmap.MADV_RANDOM)
            numbers = itertools.count()
            return [
                self._origin(buffer, start, end, number)
                for number, (start, end) in zip(numbers, payload_ranges(buffer), strict=False)
            ]

    def _origin(self, buffer: mmap.mmap, start: int, end: int, number: int) -> Origin | None:
        try:
            example = parse_example(buffer, start, end)  # type: ignore[arg-type]
            return self.layout.origin(example, self._fallback(number), self.split)
        except DAMAGE:
            return None
