"""Simulator: the interface of every simulated task, and how its pictures are taken.

`metaworld` and `robosuite` implement it, and `make_simulator` in `tasks` makes one. There is no
learning here and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from mcr.runs.ranges import NAMES, check_fields, choice, whole

LOOKS = ("fixed", "recoloured", "varied")

# "<camera>_image": uint8 [H, W, 3], upright RGB; "proprioception": float32 [P]. It holds nothing
# that a real robot could not observe.
Observation = dict[str, np.ndarray]


@dataclass(frozen=True)
class PictureConfig:
    """How pictures of a task are taken.

    picture_size: height and width in pixels; 0 = no pictures, which makes steps much faster
    cameras:      names of the model's cameras; () = the suite's usual ones
    looks:        "fixed": the simulator's own; "recoloured": light and colours are drawn for each
                  scene; "varied": cameras, light and colours are. See `randomization`.
    """

    picture_size: Annotated[int, whole(0, 4096)] = 224
    cameras: Annotated[tuple[str, ...], NAMES] = ()
    looks: Annotated[str, choice(LOOKS)] = "fixed"

    def __post_init__(self) -> None:
        check_fields(self)

    def chosen_cameras(self, usual: tuple[str, ...]) -> tuple[str, ...]:
        """The cameras whose pictures an observation holds. usual: those of the suite"""
        return (self.cameras or usual) if self.picture_size else ()


class Simulator(Protocol):
    """One task. Call `reset` first. A success may be lost again, so check it at every step."""

    task: str
    cameras: tuple[str, ...]
    action_dim: int
    horizon: int  # steps after which a rollout has failed

    def reset(self, seed: int) -> Observation:
        """Begin a scene, which depends on the seed alone, bit for bit; restart the expert."""

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        """Apply an action, float [A], the gripper last, after clipping it to [-1, 1].

        Returns the observation, and whether the task is done at this moment.
        """

    def expert(self) -> np.ndarray:
        """The scripted expert's action for this moment, float32 [A].

        The expert knows the true state of the scene. Some experts advance through phases when they
        are asked, so ask once per step.
        """

    def state(self) -> np.ndarray:
        """The true state of the scene at this moment, float32 [Z].

        It holds the proprioception, and where the task's objects and goals are. No robot could
        observe it, so it is no part of an observation. It serves to calibrate tasks.
        """

    def masks(self) -> dict[str, np.ndarray]:
        """camera -> bool [H, W]: the pixels of the gripper and of the task's objects."""

    def close(self) -> None: ...
