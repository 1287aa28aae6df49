"""RLDS shards as a source of the index. What the fields of a record mean is in `droid.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mcr.data import pictures
from mcr.data.droid import RldsDataset
from mcr.data.sources.source import Contents, episode_row, stack_signals
from mcr.data.tfrecord import BadRecord

_WORTH_PROCESSES = 2**28  # bytes of shards; fewer are indexed sooner than processes start


class RldsSource:
    """An RLDS version folder. Its parts are its shards."""

    kind: ClassVar = "rlds"
    unit: ClassVar = "B"

    def __init__(self, folder: Path):
        self._dataset = RldsDataset.open(folder)
        self.root = self._dataset.root
        self.shards = [path.name for path in self._dataset.shards]

    @staticmethod
    def recognises(folder: Path) -> bool:
        # The pattern of a version (1.0.1) is not "*", which would open each of the 100,000 episodes
        # of a tree and take seconds.
        features = folder / "features.json"
        return features.is_file() or bool(list(folder.glob("*.*.*/features.json")))

    def cameras(self) -> list[str]:
        return list(self._dataset.cameras)

    def parts(self) -> list[Shard]:
        return [Shard(self._dataset.narrow(number), number) for number in range(len(self.shards))]

    def is_small(self) -> bool:
        return sum(self.stamp().values()) < _WORTH_PROCESSES

    def stamp(self) -> dict[str, int]:
        """The size of each shard."""
        return {path.name: path.stat().st_size for path in self._dataset.shards}


@dataclass(frozen=True)
class Shard:
    """One shard.

    dataset: narrowed to this shard
    number:  its position in the whole data set
    """

    dataset: RldsDataset
    number: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dataset.shards[0].stat().st_size

    def read(self) -> Contents:
        (shard,) = self.dataset.shards
        found = Contents()
        for record in self.dataset.records(shard):
            try:
                episode = self.dataset.parse(record)
                size = pictures.size_of(episode.encoded_frame(self.dataset.cameras[0], 0))
                found.columns, signals = stack_signals(episode.signals)
            except BadRecord as error:
                found.problems.append(str(error))
                continue
            except ValueError as error:
                found.problems.append(f"{shard} at byte {record.offset}: {error}")
                continue
            found.signals.append(signals)
            ranges = [episode.frame_ranges[camera] for camera in self.dataset.cameras]
            found.frame_offsets.append(np.stack([begin for begin, _ in ranges], 1) + record.offset)
            found.frame_lengths.append(np.stack([n for _, n in ranges], 1).astype(np.int32))
            row = episode_row(
                episode.origin,
                name="",
                length=episode.length,
                languages=episode.languages,
                shard=self.number,
                file_path=episode.file_path,
                picture=(*size, ""),
                record_offset=record.offset,
            )
            found.rows.append(row)
        return found
