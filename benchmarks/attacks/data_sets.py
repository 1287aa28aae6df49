"""Data sets as campaigns: written in every format, and read from index to the last pixel."""

from __future__ import annotations

import contextlib
import io
import random
import zlib
from pathlib import Path

import mcr
from attacks.campaign import Campaign, SilentLoss
from attacks.damages import add_odd_entry, damage_file, damage_json, files_below
from mcr.data.extract_shard import Options, ShardTask, extract_shard, scan_origins
from mcr.data.manifest import Manifest, Page
from mcr.data.sources import open_source
from mcr.data.tfrecord import BadRecord
from mcr.errors import UserError
from tests.data.formats import Recorded, record_episodes

NUM_EPISODES = 4


def short_episodes() -> list[Recorded]:
    """Four episodes of four to seven steps."""
    return [
        Recorded(
            {camera: jpegs[:length] for camera, jpegs in episode.jpegs.items()},
            {camera: frames[:length] for camera, frames in episode.frames.items()},
            episode.state[:length],
            episode.action[:length],
            episode.text,
        )
        for episode, length in zip(record_episodes(), (5, 4, 7, 6), strict=True)
    ]


class DataSet(Campaign):
    """A campaign against the data set of one format, in the folder `data`.

    steps: per case, the data set is opened, indexed and read whole; some are extracted, too
    """

    def damage(self, folder: Path, draw: random.Random) -> str:
        data = folder / "data"
        kind = draw.random()
        if kind < 0.06:
            return add_odd_entry(data, draw)
        path = draw.choice(self.targets(files_below(data), draw))
        if path.suffix in (".json", ".jsonl") and draw.random() < 0.8:
            return damage_json(path, draw)
        if draw.random() < 0.5 and (what := self.damage_structure(path, draw)):
            return what
        return damage_file(path, draw)

    def targets(self, files: list[Path], draw: random.Random) -> list[Path]:
        """Return the files of which one is damaged. Kinds of files have the same chance."""
        kind = draw.choice(sorted({path.suffix for path in files}))
        return [path for path in files if path.suffix == kind]

    def damage_structure(self, path: Path, draw: random.Random) -> str:
        """Damage a value inside of a file of this format. Return "" if there is none in it."""
        return ""

    def read(self, folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._read_all(folder)
            if zlib.crc32(folder.name.encode()) % 4 == 0:
                self._extract(folder)

    def _read_all(self, folder: Path) -> None:
        data = mcr.open_data(folder / "data", index=folder / "index")
        if len(data) < NUM_EPISODES and not (
            data.index.info["problems"] or data.index.info["remarks"]
        ):
            raise SilentLoss(f"{len(data)} episodes")
        repr(data)
        problems = 0
        for row in range(len(data)):
            data.signal(data.index.signal_names[0], row) if data.index.signal_names else None
            data.text(row)
            for number, camera in enumerate(data.cameras):
                if data.index.sizes[row, number, 0]:
                    with contextlib.suppress(UserError):
                        data.frames(row, camera)
                        continue
                    problems += 1

    def _extract(self, folder: Path) -> None:
        source = open_source(folder / "data")
        if source.kind == "tree":
            return
        options = Options().resolve(source)
        decoder = source.decoder()
        if decoder is not None:
            decoder.close()
        (folder / "tree").mkdir()
        book = Manifest(folder / "manifest", folder / "tree", 10.0)
        book.begin({"dataset": "attacked"})
        for number, part in enumerate(source.parts()):
            names = [origin.name if origin else "" for origin in scan_origins(part)]
            page = Page(f"part-{number:05d}", (number, part.size), is_shard=False)
            task = ShardTask(
                part=part,
                page=page,
                names=tuple(f"{name}_{number}" if name else "" for name in names),
                limit=None,
                options=options,
                manifest=book,
                path=source.path,
                root=source.root,
                schema=source.schema,
                has_decoder=decoder is not None,
            )
            result = extract_shard(task)
            assert not any(isinstance(record, BadRecord) for record in result.records)
