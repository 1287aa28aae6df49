"""RLDS: damaged shards and descriptions, and records that are wrong but have right checksums."""

from __future__ import annotations

import random
from pathlib import Path

from attacks.damages import damage_bytes
from attacks.data_sets import DataSet, short_episodes
from mcr.data.tfrecord import read_records, write_records
from tests.data.formats import write_rlds

NAMES = (
    "all_formats-train.tfrecord-00000-of-99999999999",
    "all_formats-train.tfrecord-00007-of-00002",
    "other-train.tfrecord-00000-of-00002",
    "all_formats-val.tfrecord-00000-of-00002",
)


class Rlds(DataSet):
    def sound(self, folder: Path) -> None:
        write_rlds(folder, short_episodes()).rename(folder / "data")

    def targets(self, files: list[Path], draw: random.Random) -> list[Path]:
        described = [path for path in files if path.suffix == ".json"]
        return described if draw.random() < 0.4 else [p for p in files if p not in described]

    def damage_structure(self, path: Path, draw: random.Random) -> str:
        if path.suffix == ".json":
            return ""
        if draw.random() < 0.05:
            name = draw.choice(NAMES)
            path.rename(path.with_name(name))
            return f"{path.name} is {name}"
        payloads = [record.payload or b"" for record in read_records(path)]
        number = draw.randrange(len(payloads))
        payloads[number] = damage_bytes(payloads[number], draw)
        path.unlink()
        write_records(path, payloads)
        return f"payload {number} of {path.name}, with its checksum"
