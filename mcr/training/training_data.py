"""The data of a pre-training run: its data sets, and batches of clips from all of them.

`train.py` opens it before it builds the network, and never changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mcr.data.batch import UNNAMED, Dimensions, MixedBatch
from mcr.data.loader import MixtureLoader
from mcr.data.mixture import data_sets, with_data_sets
from mcr.errors import UserError
from mcr.training.config import Config, counts_of_clips
from mcr.training.distributed import World
from mcr.training.training_set import TrainingSet, places_to_read


class TrainingData:
    """The data sets of one run, by name. A run without `data.mix` has one, which is UNNAMED.

    sets:       in the order in which their clips lie in a batch
    config:     the options with what follows from the data filled in, see TrainingSet
    num_frames: frames of a clip that are read
    report:     lines that say what is trained on
    """

    def __init__(self, config: Config, world: World):
        """Every process calls this. Raises UserError if the data cannot be used."""
        self._world, self._run = world, config
        counts = counts_of_clips(config)
        self.sets = {
            name: self._open(name, data, counts[name])
            for name, data in data_sets(config.data).items()
        }
        self.config = with_data_sets(config.data, {n: s.config for n, s in self.sets.items()})
        self.num_frames = len(places_to_read(config))
        self.report = [line for part in self.sets.values() for line in self._report(part)]

    def _open(self, name: str, data: Any, num_clips: int) -> TrainingSet:
        try:
            return TrainingSet(name, data, num_clips, self._run, self._world)
        except UserError as error:
            raise UserError(f"data.mix.{name}: {error}" if name else str(error)) from error

    def _report(self, part: TrainingSet) -> list[str]:
        if not part.name:
            return part.report
        share = part.num_clips / sum(p.num_clips for p in self.sets.values())
        return [f"{part.name}: {share:.1%} of the clips", *part.report]

    @property
    def dimensions(self) -> dict[str, Dimensions]:
        return {name: part.clips.dimensions for name, part in self.sets.items()}

    @property
    def statistics(self) -> dict[str, Any]:
        """The statistics of each data set, empty if signals are not to be normalised."""
        return {name: s.statistics for name, s in self.sets.items() if s.statistics is not None}

    def loader(self, first_sample: int, pin_memory: bool) -> MixtureLoader:
        """Load this process's share of the training clips from number `first_sample` on.

        Each batch is a part that a step is computed in. There is no end.
        """
        world = self._world
        return self._loader(
            first_sample, pin_memory=pin_memory, rank=world.rank, world_size=world.size
        )

    def batches_of(self, step: int) -> Iterator[MixedBatch]:
        """Read all clips of a step again, in this process."""
        run = self._run
        loader = self._loader(step * run.batch_size, num_samples=run.batch_size, workers=0)
        yield from loader

    def _loader(self, first_sample: int, workers: int | None = None, **options: Any):
        data = self.config if workers is None else replace(self.config, workers=workers)
        return MixtureLoader(
            {name: part.clips for name, part in self.sets.items()},
            {name: part.num_clips for name, part in self.sets.items()},
            data,
            first_sample,
            **options,
        )

    # --- identity

    def identity(self) -> dict[str, Any]:
        """What dataset.json and checkpoints say about the data."""
        identities = {name: part.identity() for name, part in self.sets.items()}
        if UNNAMED in identities:
            return identities[UNNAMED]
        fingerprints = [each["fingerprint"] for each in identities.values()]
        return {
            "name": " + ".join(identities),
            "fingerprint": hashlib.sha256(" ".join(fingerprints).encode()).hexdigest(),
            "episodes": sum(each["episodes"] for each in identities.values()),
            "mix": identities,
        }

    def require_same(self, identity: dict[str, Any], where: str) -> None:
        """Raise UserError if a data set of the run is not the one that a checkpoint knows.

        identity: of the checkpoint's data
        """
        known = identity.get("mix", {UNNAMED: identity})
        for name, part in self.sets.items():
            if name in known and not part.is_same(known[name]):
                old, new = known[name], part.identity()
                raise UserError(
                    f"{where} was trained on other data{name and f' called {name}'} (fingerprint "
                    f"{old['fingerprint'][:12]}, frames {old.get('frames', 'as recorded')}; "
                    f"{part.index.source} has {new['fingerprint'][:12]}, {new['frames']}); choose "
                    "another run_dir"
                )
