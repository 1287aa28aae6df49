"""One data set of a pre-training run: its index, the episodes to train on, and the held-out ones.

`training_data.py` opens those of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mcr.data.batch import ALL_FRAMES, Dimensions
from mcr.data.frames import FrameReader
from mcr.data.index import Index, open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.pack import Pack, open_pack, slowdown
from mcr.data.sampling import TRAIN, VALIDATION
from mcr.data.selection import Episodes, least_frames, select_episodes, split_sessions
from mcr.data.spaces import why_no_action
from mcr.data.statistics import space_statistics
from mcr.errors import UserError
from mcr.objectives import frames_read
from mcr.training.config import Config
from mcr.training.distributed import World


class TrainingSet:
    """One data set of a run.

    name:       in `data.mix`; UNNAMED if the run has only this one
    config:     the options with what follows from the data filled in: cameras, state_keys and
                selection.min_frames
    index:      of the whole data set
    clips:      the clips to train on
    validation: loads the held-out clips, the same ones every time; None = no validation
    shown:      the episodes that pictures show: held-out ones if there are any
    statistics: {"state" | "action": {"mean", "std", ...}} of the whole data set; None if the
                signals are not to be normalised
    report:     lines that say what is trained on
    """

    def __init__(self, name: str, data: DataConfig, num_clips: int, config: Config, world: World):
        """
        data:      its options
        num_clips: its clips in a batch, over all processes

        Every process calls this. Raises UserError if the data cannot be used.
        """
        self.name, self.num_clips = name, num_clips
        self._world, self._places = world, places_to_read(config)
        self.index = world.in_turn(
            lambda: open_index(data.root, data.index or None, schema=data.schema or None)
        )
        self.config = data = resolved(data, self.index)
        self._pack = self._open_pack()
        episodes, choices = select_episodes(self.index, data.selection)
        training, held_out = split_sessions(self.index, episodes, data.selection.val_fraction)
        parts = f"{len(training)} episodes to train on, {len(held_out)} held out by session"
        if data.selection.val_fraction and not len(held_out):
            parts += "; all are of one recording session, so none can be held out"
        spaces = (
            f"cameras {', '.join(data.cameras)}; state {' + '.join(data.state_keys) or 'none'}; "
            f"action {' + '.join(self.index.action) or 'none'}"
        )
        self.report = [f"{self.index.source} ({self.index.kind})", *choices, parts, spaces]
        world.say(f"data{name and f' {name}'}: " + "\n  ".join(self.report))
        self.num_episodes = len(training)
        self.shown = held_out if len(held_out) else training
        self.clips = self._clips(training, data, config.seed)
        _require_signals(self.index, self.clips.dimensions, config.loss_weights)
        self.validation = None
        if len(held_out) and config.val_clips:
            # Validation is rare and short, so this process reads the clips itself.
            data = dataclasses.replace(data, workers=0)
            clips = self._clips(held_out, data, config.seed, VALIDATION)
            self.validation = ClipLoader(
                clips,
                data,
                num_clips,
                num_samples=config.val_clips,
                rank=world.rank,
                world_size=world.size,
            )
        self.statistics = world.in_turn(self._statistics) if config.normalise_signals else None

    def _open_pack(self) -> Pack | None:
        """The pack of data whose frames are not addressable, made if need be."""
        if self.index.is_addressable:
            return None
        if self.config.pack:
            return self._world.in_turn(lambda: open_pack(self.index))
        if self._world.is_main:
            print(
                "data.pack=false: frames are decoded as they are drawn, which takes about "
                f"{slowdown(self.index):.0f} times as long as from a pack",
                flush=True,
            )
        return None

    def _clips(
        self, episodes: Episodes, data: DataConfig, seed: int, stream: int = TRAIN
    ) -> ClipDataset:
        return ClipDataset(self.index, episodes, data, seed, stream, self.frames(), self._places)

    def frames(self) -> FrameReader:
        """A new reader of the frames. Every process and every thread needs one of its own."""
        return FrameReader(self.index, self._pack)

    def identity(self) -> dict[str, Any]:
        """What dataset.json and checkpoints say about the data."""
        return {
            "name": self.index.source.name,
            "fingerprint": self.index.fingerprint,
            "frames": self._pack.description if self._pack else "as recorded",
            "episodes": self.num_episodes,
        }

    def is_same(self, identity: dict[str, Any]) -> bool:
        """Is this the data of a checkpoint, whose `identity` is given?

        Checkpoints of version 0.2 know a fingerprint of the signals alone.
        """
        own = self.identity()
        known = {self.index.fingerprint, self.index.signals_fingerprint}
        same_frames = identity.get("frames", own["frames"]) == own["frames"]
        return identity["fingerprint"] in known and same_frames

    def _statistics(self) -> dict[str, dict[str, list[float]]]:
        spaces = {"state": self.clips.state_space, "action": self.clips.action_space}
        return {name: space_statistics(self.index, space) for name, space in spaces.items()}


def places_to_read(config: Config) -> Sequence[int]:
    """Return which of the five frames of a clip a run reads."""
    return frames_read(config.loss_weights) if config.data.skip_unread_frames else ALL_FRAMES


def resolved(data: DataConfig, index: Index) -> DataConfig:
    """Fill in what follows from the data: the schema's cameras and state, the least length.

    A run saves these values, so it is resumed with them even if a default or a schema changes.
    """
    least = data.selection.min_frames or least_frames(index)
    return dataclasses.replace(
        data,
        cameras=list(data.cameras or index.default_cameras),
        state_keys=list(data.state_keys or index.state),
        selection=dataclasses.replace(data.selection, min_frames=least),
    )


def _require_signals(
    index: Index, dimensions: Dimensions, loss_weights: Mapping[str, float]
) -> None:
    """Raise UserError if an objective needs actions or states that the data lacks."""
    lacking = {
        "action_prediction": dimensions.action == 0,
        "dynamics_alignment": dimensions.action + dimensions.state == 0,
    }
    needing = [name for name in lacking if lacking[name] and loss_weights.get(name, 0) > 0]
    if needing:
        fix = " ".join(f"loss_weights.{name}=0" for name in needing)
        raise UserError(
            f"{why_no_action(index)}. {' and '.join(needing)} "
            f"{'needs' if len(needing) == 1 else 'need'} one: name it in a schema, data.schema="
            f"my_robot.yaml with action: [...], or train the other losses alone: {fix}"
        )
