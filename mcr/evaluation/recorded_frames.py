"""Frames of recorded episodes with their features: what the offline scores are computed from.

Frames of whole recording sessions are held out. Each frame goes through the encoder once, for all
scores. Called by `offline`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from einops import rearrange

from mcr.data.index import Index
from mcr.data.selection import Episodes, SelectionConfig, select_episodes, split_sessions
from mcr.data.spaces import ROTATIONS, action_space, signal_space
from mcr.errors import UserError
from mcr.evaluation.probes import choose_steps, embed_steps, with_cameras
from mcr.models.encoder import Encoder
from mcr.runs.ranges import NAMES, check_fields, choice, whole


@dataclass
class OfflineConfig:
    """Which frames, cameras and signals the offline suite uses.

    cameras:    for probes their features are concatenated, as for a policy. [] = the first two that
                the schema uses. Retrieval needs at least two. Episodes that lack one are left out.
    state_keys: signals of the state; [] = the state that the schema names
    rotation:   how rotations in poses are represented, see `data.spaces`; "6d" is continuous
    selection:  which episodes, and the share of recording sessions that are held out. An encoder
                that was pretrained on the same data must not have seen the held-out pictures, so
                use its val_fraction or a smaller one, whose sessions are among those; `offline`
                marks encoders that have.
    max_episodes, frames_per_episode: on each side, evenly spaced
    num_seeds:  number of networks for each probe

    Raises UserError for numbers that leave nothing to compare.
    """

    cameras: Annotated[list[str], NAMES] = field(default_factory=list)
    state_keys: Annotated[list[str], NAMES] = field(default_factory=list)
    rotation: Annotated[str, choice(ROTATIONS)] = "6d"
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(val_fraction=0.25))
    max_episodes: Annotated[int, whole(1)] = 200
    frames_per_episode: Annotated[int, whole(2)] = 32
    num_seeds: Annotated[int, whole(1)] = 3

    def __post_init__(self) -> None:
        check_fields(self)

    def resolved(self, index: Index) -> OfflineConfig:
        """Return the same with the cameras and the state that are used filled in."""
        cameras = self.cameras or index.default_cameras[:2]
        return replace(self, cameras=list(cameras), state_keys=list(self.state_keys or index.state))


@dataclass(frozen=True)
class Frames:
    """The n frames of the training or the held-out side, episode by episode, in order.

    rows:     int64 [n], the episodes' rows in the index
    steps:    int64 [n]
    sessions: [n], names of recording sessions
    features: float32 [n, V, D]
    targets:  name -> float [n, K], what probes predict
    """

    rows: np.ndarray
    steps: np.ndarray
    sessions: np.ndarray
    features: np.ndarray
    targets: dict[str, np.ndarray]

    @property
    def side_by_side(self) -> np.ndarray:
        """The features of all cameras concatenated, [n, V * D]."""
        return rearrange(self.features, "n v d -> n (v d)")

    @property
    def episodes(self) -> list[slice]:
        """The range of each episode's frames."""
        begins = [0, *(np.flatnonzero(np.diff(self.rows)) + 1), len(self.rows)]
        return [slice(a, b) for a, b in zip(begins[:-1], begins[1:], strict=True)]


def read_frames(encoder: Encoder, index: Index, config: OfflineConfig) -> tuple[Frames, Frames]:
    """Choose frames, encode them, and read the probes' targets: (training side, held-out side).

    Raises UserError if the data lacks a camera or a signal, or no episode is held out.
    """
    config = config.resolved(index)
    sides = _sides(index, config)
    if len(sides[1]) == 0:
        raise UserError(
            f"{index.source}: no episodes are held out to judge by; "
            f"selection.val_fraction={config.selection.val_fraction} must be above 0"
        )
    cameras = config.cameras
    spaces = {
        "state": signal_space(index, tuple(config.state_keys), config.rotation, "state_keys"),
        "action": action_space(index, "default", config.rotation),
    }
    spaces = {name: space for name, space in spaces.items() if space.size}
    frames = []
    for side in sides:
        side = with_cameras(index, side, cameras)
        pairs = choose_steps(index, side, config.max_episodes, config.frames_per_episode)
        rows, steps = pairs.T
        targets = {k: s.read(index.signals, index.starts[rows] + steps) for k, s in spaces.items()}
        targets["time_to_end"] = (index.lengths[rows] - 1 - steps)[:, None]
        features = embed_steps(encoder, index, pairs, cameras)
        features = rearrange(features, "n (v d) -> n v d", v=len(cameras))
        sessions = index.table["session"].to_numpy()[rows]
        frames.append(Frames(rows, steps, sessions, features, targets))
    return frames[0], frames[1]


def held_out_sessions(index: Index, config: OfflineConfig) -> set[str]:
    """The names of the sessions that are held out."""
    _, held_out = _sides(index, config)
    return set(index.table["session"].to_numpy()[held_out.rows])


def _sides(index: Index, config: OfflineConfig) -> tuple[Episodes, Episodes]:
    """The episodes of the training and of the held-out side."""
    episodes, _ = select_episodes(index, config.selection)
    return split_sessions(index, episodes, config.selection.val_fraction)
