"""Demonstrations: recordings with actions -> the arrays that behaviour cloning learns from.

    robomimic's HDF5        through `mcr.data.hdf5`; split as the file says, if it has mask/train
                            and mask/valid
    RLDS shards, our tree   through `mcr.data.index`; signals and action space as in pretraining;
                            only successes, where outcomes are known

The steps of all episodes are concatenated in the order of `recordings`, as in a feature cache.
Called by `behaviour_cloning` and by the evaluation. `recordings` reads the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mcr.data import hdf5
from mcr.data.hdf5 import Hdf5File
from mcr.data.index import Index, open_index
from mcr.data.spaces import action_space, signal_space
from mcr.errors import UserError, nearest
from mcr.features.recordings import Hdf5Recordings, IndexedRecordings, Recordings
from mcr.runs.processes import progress_bar

_INDEX_SIGNALS = ("cartesian_position", "gripper_position", "joint_position")
_PRIVILEGED = "object"  # robomimic's key for the true poses of objects, which no real robot knows


@dataclass
class DemonstrationConfig:
    """What of the demonstrations is used.

    data:           robomimic's HDF5, an RLDS version folder, or the root of a tree
    cameras:        [] = all
    low_dim:        low-dimensional signals; [] = all but "object", which no real robot knows; for
                    shards and trees: the poses of hand, gripper and joints
    proprioception: False = no low-dimensional signals
    action_space:   for shards and trees: as `data.action_space` in pretraining
    rotation:       for shards and trees: "6d", or "euler" angles, which are discontinuous
    val_fraction:   share of the episodes that is held out, if the file has no split of its own;
                    0 = no episode is held out, whatever the file says
    """

    data: str = ""
    cameras: list[str] = field(default_factory=list)
    low_dim: list[str] = field(default_factory=list)
    proprioception: bool = True
    action_space: str = "default"
    rotation: str = "6d"
    val_fraction: float = 0.1


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

    Raises UserError if the data is of an unknown kind, if a camera or signal does not exist, and if
    actions, signals and pictures of an episode differ in length.
    """
    if not config.data:
        raise UserError(
            "demonstrations.data is not set: give an HDF5 file, an RLDS version folder or a tree"
        )
    if not 0 <= config.val_fraction < 1:
        raise UserError(f"val_fraction={config.val_fraction} must lie in [0, 1)")
    source = Path(config.data).expanduser()
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; check demonstrations.data=")
    is_hdf5 = source.is_file() and source.suffix in hdf5.SUFFIXES
    found = _of_hdf5(source, config) if is_hdf5 else _of_index(open_index(source), config)
    for name in ("low_dim", "actions"):
        if not np.isfinite(getattr(found, name)).all():
            raise UserError(f"{source}: {name} hold NaN or infinity")
    return found


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


# --------------------------------------------------------------------------- HDF5


def _of_hdf5(path: Path, config: DemonstrationConfig) -> Demonstrations:
    recordings = Hdf5Recordings(path)
    with Hdf5File(path) as file:
        signals = _signals(file, config) if config.proprioception else ()
        rows = [
            _numbers(file, episode, length, signals)
            for episode, length in zip(recordings.names, recordings.lengths, strict=True)
        ]
        training, held_out = _subsets(file, config.val_fraction)
    if len(shapes := {tuple(array.shape[1:] for array in pair) for pair in rows}) > 1:
        raise UserError(f"{path}: demonstrations differ in the sizes of signals, actions: {shapes}")
    low_dim, actions = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
    return Demonstrations(
        recordings,
        _cameras(recordings, config),
        signals,
        low_dim,
        actions,
        training,
        held_out,
    )


def _signals(file: Hdf5File, config: DemonstrationConfig) -> tuple[str, ...]:
    known = file.signals(file.episodes[0])
    for name in config.low_dim:
        if name not in known:
            raise UserError(f"{file.path}: no signal {name!r} in obs{nearest(name, known)}")
    return tuple(config.low_dim) or tuple(name for name in known if name != _PRIVILEGED)


def _numbers(
    file: Hdf5File, episode: str, length: int, signals: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Signals [T, P] and actions [T, A] of one episode of T frames, both float32."""
    place = f"{file.path}, {episode}"
    named = {"actions": "actions", **{name: f"obs/{name}" for name in signals}}
    for name, key in named.items():
        steps = file.length(episode, key)
        if steps is None:
            hint = ", which the first episode has" if key != "actions" else ""
            raise UserError(f"{place}: has no {key}{hint}")
        if steps != length:
            raise UserError(f"{place}: {steps} steps of {name}, but {length} pictures")
    actions, *rest = (file.read(episode, key).astype(np.float32) for key in named.values())
    return np.concatenate([np.zeros((length, 0), np.float32), *rest], axis=1), actions


def _subsets(file: Hdf5File, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the episodes to train on and held out: the file's split, or by `val_fraction`."""
    subsets = {name: file.subset(name) for name in ("train", "valid")}
    if not val_fraction or None in subsets.values():
        return _split(range(len(file.episodes)), val_fraction)
    rows = {name: row for row, name in enumerate(file.episodes)}
    parts = []
    for subset, names in subsets.items():
        assert names is not None
        if unknown := [name for name in names if name not in rows]:
            raise UserError(
                f"{file.path}: mask/{subset} names {unknown[0]!r}, which is not in data"
            )
        parts.append(np.array(sorted(rows[name] for name in names), np.int64))
    return parts[0], parts[1]


# --------------------------------------------------------------------------- shards and trees


def _of_index(index: Index, config: DemonstrationConfig) -> Demonstrations:
    recordings = IndexedRecordings(index)
    keys = tuple(config.low_dim) or _INDEX_SIGNALS
    spaces = [signal_space(index, keys, config.rotation)] if config.proprioception else []
    spaces.append(action_space(index, config.action_space, config.rotation))
    steps = np.concatenate(
        [start + np.arange(n) for start, n in zip(index.starts, index.lengths, strict=True)]
    )
    *low_dim, actions = (space.read(index.signals, steps) for space in spaces)
    successes = index.table["outcome"].to_numpy() == "success"
    usable = np.flatnonzero(successes) if successes.any() else np.arange(len(index))
    return Demonstrations(
        recordings,
        _cameras(recordings, config),
        keys if config.proprioception else (),
        low_dim[0] if low_dim else np.zeros((len(steps), 0), np.float32),
        actions,
        *_split(list(usable), config.val_fraction),
    )
