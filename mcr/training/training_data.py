"""What a pre-training run opens: the index, the episodes to train on, and the held-out ones.

`train.py` opens it before it builds the network, and never changes it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.sampling import VALIDATION
from mcr.data.selection import select_episodes, split_sessions
from mcr.data.statistics import space_statistics
from mcr.training.config import Config
from mcr.training.distributed import World


class TrainingData:
    """The data of one run.

    index:      of the whole data set
    clips:      the clips to train on
    validation: loads the held-out clips, the same ones every time; None = no validation
    shown:      the episodes that pictures show: held-out ones if there are any
    statistics: {"state" | "action": {"mean", "std", ...}} of the whole data set; None if the
                signals are not to be normalised
    report:     lines that say what is trained on
    """

    def __init__(self, config: Config, world: World):
        """Every process calls this. Raises UserError if the data cannot be used."""
        self._config, self._world = config, world
        data = config.data
        self.index = world.in_turn(lambda: open_index(data.root, data.index or None))
        episodes, choices = select_episodes(self.index, data.selection)
        training, held_out = split_sessions(self.index, episodes, data.selection.val_fraction)
        parts = f"{len(training)} episodes to train on, {len(held_out)} held out by session"
        self.report = [f"{self.index.source} ({self.index.kind})", *choices, parts]
        world.say("data: " + "\n  ".join(self.report))
        self.num_episodes = len(training)
        self.shown = held_out if len(held_out) else training
        self.clips = ClipDataset(self.index, training, data, config.seed)
        self.validation = None
        if len(held_out) and config.val_clips:
            # Validation is rare and short, so this process reads the clips itself.
            data = dataclasses.replace(data, workers=0)
            clips = ClipDataset(self.index, held_out, data, config.seed, VALIDATION)
            self.validation = self._loader(clips, data, num_samples=config.val_clips)
        self.statistics = world.in_turn(self._statistics) if config.normalise_signals else None

    def identity(self) -> dict[str, Any]:
        """What dataset.json and checkpoints say about the data."""
        return {
            "name": self.index.source.name,
            "fingerprint": self.index.fingerprint,
            "episodes": self.num_episodes,
        }

    def loader(self, first_sample: int, pin_memory: bool) -> ClipLoader:
        """Load the training clips from number `first_sample` on, without end."""
        data = self._config.data
        return self._loader(self.clips, data, first_sample=first_sample, pin_memory=pin_memory)

    def _loader(self, clips: ClipDataset, data: DataConfig, **options: Any) -> ClipLoader:
        """This process's share of the clips, in the parts that a step is computed in."""
        part_size = self._config.batch_size // self._config.engine.accumulate
        world = self._world
        return ClipLoader(clips, data, part_size, rank=world.rank, world_size=world.size, **options)

    def _statistics(self) -> dict[str, dict[str, list[float]]]:
        spaces = {"state": self.clips.state_space, "action": self.clips.action_space}
        return {name: space_statistics(self.index, space) for name, space in spaces.items()}
