"""Demonstrations: recordings with actions -> the arrays that behaviour cloning learns from.

Data of any format is read through `mcr.data.index`; signals and action space are as in pretraining.
Only successes are used where outcomes are known. Episodes are split as the data says, if it has a
train and a validation split (robomimic's mask/train and mask/valid, RLDS splits).

The steps of all episodes are concatenated in the order of `recordings`, as in a feature cache.
Called by `behaviour_cloning` and by the evaluation. `recordings` reads the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from mcr.data.index import Index, open_index
from mcr.data.spaces import ACTION_SPACES, ROTATIONS, action_space, signal_space, why_no_action
from mcr.errors import UserError, nearest
from mcr.features.recordings import Recordings
from mcr.runs.atomic import reserve
from mcr.runs.processes import progress_bar
from mcr.runs.ranges import ANY_TEXT, NAMES, check_fields, choice, number

_HELD_OUT_SPLITS = ("valid", "validation", "val", "test")


@dataclass
class DemonstrationConfig:
    """What of the demonstrations is used.

    data:           a data set of any format
    schema:         as `data.schema` in pretraining
    index:          as `data.index` in pretraining
    cameras:        [] = all
    low_dim:        low-dimensional signals; [] = the state that the schema names, or all but the
                    true poses of objects, which no real robot knows
    proprioception: False = no low-dimensional signals
    action_space:   as `data.action_space` in pretraining
    rotation:       as `data.rotation` in pretraining: "6d", or "euler" angles, which jump
    val_fraction:   share of the episodes that is held out, if the data has no split of its own;
                    0 = no episode is held out, whatever the data says
    """

    data: Annotated[str, ANY_TEXT] = ""
    schema: Annotated[str, ANY_TEXT] = ""
    index: Annotated[str, ANY_TEXT] = ""
    cameras: Annotated[list[str], NAMES] = field(default_factory=list)
    low_dim: Annotated[list[str], NAMES] = field(default_factory=list)
    proprioception: bool = True
    action_space: Annotated[str, choice(ACTION_SPACES)] = "default"
    rotation: Annotated[str, choice(ROTATIONS)] = "6d"
    val_fraction: Annotated[float, number(least=0, below=1)] = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "demonstrations.")


@dataclass(frozen=True)
class Demonstrations:
    """N steps of all episodes.

    low_dim:  float32 [N, P]; the signals called `signals`, side by side
    actions:  float32 [N, A]
    training: rows of the episodes to train on, int64
    held_out: rows of the episodes that are held out, int64; episodes in neither are not used
    """

    recordings: Recordings
    cameras: tuple[str, ...]
    signals: tuple[str, ...]
    low_dim: np.ndarray
    actions: np.ndarray
    training: np.ndarray
    held_out: np.ndarray

    def steps(self, episodes: np.ndarray) -> np.ndarray:
        """Rows of these episodes' steps in the arrays, int64."""
        starts = np.cumsum([0, *self.recordings.lengths])
        ranges = [np.arange(starts[episode], starts[episode + 1]) for episode in episodes]
        return np.concatenate(ranges) if ranges else np.arange(0)

    def pictures(self, camera: str, path: Path) -> np.ndarray:
        """All frames of a camera, uint8 [N, H, W, 3], decoded into the memory-mapped file `path`.

        Raises UserError if frames differ in size.
        """
        lengths, rows, array = self.recordings.lengths, 0, None
        with progress_bar(None, f"pictures of {camera}", "frames", sum(lengths)) as bar:
            for episode, name in enumerate(self.recordings.names):
                for frame in self.recordings.frames(episode, camera):
                    if array is None:
                        shape = (sum(lengths), *frame.shape)
                        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
                        reserve(path, array.offset + array.nbytes)
                    if frame.shape != array.shape[1:]:
                        raise UserError(
                            f"{name}: {camera} is {frame.shape[:2]} pixels, in earlier episodes "
                            f"{array.shape[1:3]}; record all in one size"
                        )
                    array[rows] = frame
                    rows += 1
                    bar.update()
        assert array is not None, "recordings have frames"
        return array


def open_demonstrations(config: DemonstrationConfig) -> Demonstrations:
    """Read everything except the pictures.

    Raises UserError if the data cannot be read, if a camera or signal does not exist, and if there
    are no actions.
    """
    if not config.data:
        raise UserError(
            "demonstrations.data is not set: give a data set of any format that docs/data.md names"
        )
    index = open_index(config.data, config.index or None, schema=config.schema or None)
    recordings = Recordings(index)
    keys = tuple(config.low_dim) or index.state
    spaces = []
    if config.proprioception:
        spaces.append(signal_space(index, keys, config.rotation, "demonstrations.low_dim"))
    spaces.append(action_space(index, config.action_space, config.rotation))
    if spaces[-1].size == 0:
        raise UserError(
            f"{why_no_action(index)}. There is nothing to learn: name the action in a schema, "
            "demonstrations.schema=my_robot.yaml with action: [...]"
        )
    steps = np.concatenate(
        [start + np.arange(n) for start, n in zip(index.starts, index.lengths, strict=True)]
    )
    *low_dim, actions = (space.read(index.signals, steps) for space in spaces)
    cameras = _cameras(recordings, config)
    return Demonstrations(
        recordings,
        cameras,
        keys if config.proprioception else (),
        low_dim[0] if low_dim else np.zeros((len(steps), 0), np.float32),
        actions,
        *_subsets(index, _usable(recordings, cameras), config.val_fraction),
    )


def _usable(recordings: Recordings, cameras: tuple[str, ...]) -> list[int]:
    """Rows of the episodes that have all cameras and, where outcomes are known, succeeded."""
    outcomes = recordings.index.table["outcome"].to_numpy()
    fits = outcomes == "success" if (outcomes == "success").any() else np.ones(len(outcomes), bool)
    rows = [
        row
        for row in np.flatnonzero(fits).tolist()
        if all(recordings.has(row, camera) for camera in cameras)
    ]
    if not rows:
        raise UserError(
            f"{recordings.index.source}: no episode has all of the cameras {', '.join(cameras)}; "
            "choose some with demonstrations.cameras"
        )
    return rows


def _subsets(index: Index, usable: list[int], val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the episodes to train on and held out: the data's split, or by `val_fraction`."""
    splits = index.table["split"].to_numpy()[usable]
    held_out, training = np.isin(splits, _HELD_OUT_SPLITS), splits == "train"
    if not val_fraction or not held_out.any() or not training.any():
        return _split(usable, val_fraction)
    rows = np.asarray(usable, np.int64)
    return rows[training], rows[held_out]


def _cameras(recordings: Recordings, config: DemonstrationConfig) -> tuple[str, ...]:
    for camera in config.cameras:
        if camera not in recordings.cameras:
            raise UserError(
                f"{config.data}: no camera {camera!r}{nearest(camera, recordings.cameras)}"
            )
    return tuple(config.cameras) or recordings.cameras


def _split(usable: Sequence[int], val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to train on and held-out episodes, which are spread evenly."""
    episodes = np.asarray(usable, np.int64)
    count = round(val_fraction * len(episodes))
    if val_fraction and len(episodes) > 1:
        count = max(1, count)
    places = (np.arange(count) + 0.5) * len(episodes) / max(1, count)
    is_held_out = np.isin(np.arange(len(episodes)), places.astype(np.int64))
    return episodes[~is_held_out], episodes[is_held_out]
