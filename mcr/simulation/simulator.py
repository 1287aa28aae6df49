"""Simulator: what every simulated task can do, and how it is seen. `tasks` makes one.

`metaworld` and `robosuite` implement it; there is no learning here and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mcr.errors import UserError, require_choice

LOOKS = ("fixed", "varied")

# "<camera>_image": uint8 [H, W, 3], upright RGB; "proprioception": float32 [P]. Nothing privileged.
Observation = dict[str, np.ndarray]


@dataclass(frozen=True)
class PictureConfig:
    """How pictures of a task are taken.

    picture_size: height and width in pixels
    cameras:      names of the model's cameras; () = the suite's usual ones
    looks:        "fixed", the simulator's own; or "varied", drawn anew for each scene: see `looks`
    """

    picture_size: int = 224
    cameras: tuple[str, ...] = ()
    looks: str = "fixed"

    def __post_init__(self) -> None:
        if self.picture_size < 1:
            raise UserError(f"picture_size={self.picture_size} must be at least 1")
        require_choice("looks", self.looks, LOOKS)


class Simulator(Protocol):
    """One task. `reset` comes first; success may come and go, so count it at any step."""

    task: str
    cameras: tuple[str, ...]
    action_dim: int
    horizon: int  # steps after which a rollout has failed

    def reset(self, seed: int) -> Observation:
        """A scene that depends on nothing but the seed, bit for bit, and the expert's beginning."""

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        """Apply float [A], clipped to [-1, 1], gripper last. Returns also: success right now?"""

    def expert(self) -> np.ndarray:
        """What the scripted expert would do now, float32 [A]; it knows the scene's true state.

        Some experts proceed from phase to phase: ask once per step.
        """

    def masks(self) -> dict[str, np.ndarray]:
        """camera -> bool [H, W]: where gripper and the task's objects are seen."""

    def close(self) -> None: ...
