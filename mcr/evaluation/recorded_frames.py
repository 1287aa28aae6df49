"""Frames of recorded episodes with their features: what the offline scores are computed from.

Frames of whole recording sessions are held out. Each frame goes through the encoder once, for all
scores. Called by `offline`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from einops import rearrange

from mcr.data.index import Index
from mcr.data.selection import SelectionConfig, select_episodes, split_sessions
from mcr.data.spaces import action_space, signal_space
from mcr.errors import UserError
from mcr.evaluation.probes import choose_steps, embed_steps
from mcr.models.encoder import Encoder


@dataclass
class OfflineConfig:
    """What the suite looks at.

    cameras:       cameras; for probes their features stand side by side, as for a policy.
                 [] = the data set's first two. Retrieval needs two at least.
    state_keys:  signals of the state; the action is the signal `action`
    rotation:    of poses among them, see `data.spaces`: as "6d" no number jumps
    selection:   which episodes, and the share of recording sessions held out. For encoders that
                 were pretrained on the same data, use the val_fraction that they had (or a smaller
                 one, whose sessions are among those): else they have seen the held-out pictures.
    max_episodes, frames_per_episode: of either side, evenly chosen
    num_seeds:   of the networks

    Raises UserError for numbers that leave nothing to compare.
    """

    cameras: list[str] = field(default_factory=list)
    state_keys: list[str] = field(
        default_factory=lambda: ["cartesian_position", "gripper_position", "joint_position"]
    )
    rotation: str = "6d"
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(val_fraction=0.25))
    max_episodes: int = 200
    frames_per_episode: int = 32
    num_seeds: int = 3

    def __post_init__(self) -> None:
        for name, least in (("max_episodes", 1), ("frames_per_episode", 2), ("num_seeds", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")


@dataclass(frozen=True)
class Frames:
    """One side's frames, n of them, episode by episode, in order.

    rows: int64 [n], of the index; sessions: [n]; steps: int64 [n]; features: float32 [n, V, D];
    targets: name -> float [n, K]
    """

    rows: np.ndarray
    steps: np.ndarray
    sessions: np.ndarray
    features: np.ndarray
    targets: dict[str, np.ndarray]

    @property
    def side_by_side(self) -> np.ndarray:
        """Features [n, V * D]."""
        return rearrange(self.features, "n v d -> n (v d)")

    @property
    def episodes(self) -> list[slice]:
        """Where each episode's frames are."""
        begins = [0, *(np.flatnonzero(np.diff(self.rows)) + 1), len(self.rows)]
        return [slice(a, b) for a, b in zip(begins[:-1], begins[1:], strict=True)]


def read_frames(encoder: Encoder, index: Index, config: OfflineConfig) -> tuple[Frames, Frames]:
    """(training side, held-out side): chosen frames, their features and what to predict of them."""
    episodes, _ = select_episodes(index, config.selection)
    sides = split_sessions(index, episodes, config.selection.val_fraction)
    if len(sides[1]) == 0:
        raise UserError(
            f"{index.source}: no episodes are held out to judge by; "
            f"selection.val_fraction={config.selection.val_fraction} must be above 0"
        )
    cameras = config.cameras or index.cameras[:2]
    spaces = {
        "state": signal_space(index, tuple(config.state_keys), config.rotation),
        "action": action_space(index, "default", config.rotation),
    }
    frames = []
    for side in sides:
        pairs = choose_steps(index, side, config.max_episodes, config.frames_per_episode)
        rows, steps = pairs.T
        targets = {k: s.read(index.signals, index.starts[rows] + steps) for k, s in spaces.items()}
        targets["time_to_end"] = (index.lengths[rows] - 1 - steps)[:, None]
        features = embed_steps(encoder, index, pairs, cameras)
        features = rearrange(features, "n (v d) -> n v d", v=len(cameras))
        sessions = index.table["session"].to_numpy()[rows]
        frames.append(Frames(rows, steps, sessions, features, targets))
    return frames[0], frames[1]
