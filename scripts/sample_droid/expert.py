"""A scripted expert that imitates a person with a joystick, as a generator of commands.

It reads the true state of the scene and yields one command per control step until it thinks that it
is done. The scene decides whether the task succeeded. Speed, detours, pauses, trembling and grasp
points differ between episodes.

It is not one of `mcr.simulation.experts`, which are precise and command displacements. This one
commands poses as DROID does, fails on request, and its random draws determine the sample data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from sample_droid.look import TABLE_HEIGHT
from sample_droid.scene import TabletopScene
from scipy.spatial.transform import Rotation

# The largest distance of a command from the robot in DROID's controller: metres, radians.
MAX_TRANSLATION, MAX_ROTATION = 0.075, 0.15
OPEN, CLOSE = -1.0, 1.0  # gripper velocities


@dataclass(frozen=True)
class Command:
    """The target pose in the world frame, and the gripper's velocity, -1 opening .. 1 closing.

    The pose lies at most `MAX_TRANSLATION` and `MAX_ROTATION` from the gripper's present pose.
    """

    position: np.ndarray
    rotation: np.ndarray
    gripper_velocity: float


class Expert:
    """Performs the scene's task, or fails at it with a `mistake`: "miss" or "drop"."""

    def __init__(self, scene: TabletopScene, rng: np.random.Generator, mistake: str = ""):
        self._scene, self._rng, self._mistake = scene, rng, mistake
        self._speed = rng.uniform(0.065, MAX_TRANSLATION)
        self._tremble = rng.uniform(0.002, 0.006)
        self._drift = np.zeros(3)
        self._grip = OPEN
        self._jaw = self._grasp_angle()

    def commands(self) -> Iterator[Command]:
        yield from self._grasp()
        if self._scene.task == "lift":
            yield from self._lift(self._rng.uniform(0.14, 0.22))
            yield from self._hold(int(self._rng.integers(11, 16)))
        else:
            yield from self._lift(self._rng.uniform(0.06, 0.10))
            yield from self._put_down()
        if self._rng.random() < 0.3:
            yield from self._hold(int(self._rng.integers(2, 6)))

    # ----------------------------------------------------------------- what to do

    def _grasp(self) -> Iterator[Command]:
        grasp = self._grasp_point()
        hover = grasp + [*self._rng.normal(0, 0.01, 2), self._rng.uniform(0.06, 0.11)]
        yield from self._reach(lambda: hover, tolerance=0.025)
        if self._rng.random() < 0.25:
            yield from self._hold(int(self._rng.integers(2, 7)))
        yield from self._reach(lambda: grasp, tolerance=0.008)
        self._grip = CLOSE
        yield from self._hold(6)

    def _lift(self, height: float) -> Iterator[Command]:
        start, _ = self._scene.gripper_pose()
        if self._mistake == "drop":
            yield from self._reach(lambda: start + [0, 0, height], tolerance=0.03)
            self._grip = OPEN
            yield from self._hold(int(self._rng.integers(11, 16)))
        yield from self._reach(lambda: start + [0, 0, height], tolerance=0.02)

    def _put_down(self) -> Iterator[Command]:
        above = self._rng.uniform(0.04, 0.07)
        yield from self._reach(lambda: self._release_point() + [0, 0, above], tolerance=0.015)
        yield from self._reach(self._release_point, tolerance=0.008, max_steps=20)
        self._grip = OPEN
        yield from self._hold(4)
        start, _ = self._scene.gripper_pose()
        retreat = start + [0, 0, self._rng.uniform(0.06, 0.12)]
        yield from self._reach(lambda: retreat, tolerance=0.03)

    # ----------------------------------------------------------------- where to do it

    def _grasp_angle(self) -> float:
        """Angle of the axis along which the jaw closes: across a cube's sides, any for a can."""
        _, rotation = self._scene.gripper_pose()
        now = np.arctan2(rotation[1, 1], rotation[0, 1])
        if self._scene.things[0].shape == "can":
            return now + self._rng.uniform(-0.4, 0.4)
        _, thing = self._scene.thing_pose(0)
        turn = np.arctan2(thing[1, 0], thing[0, 0]) - now
        return now + (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4

    def _grasp_point(self) -> np.ndarray:
        centre, _ = self._scene.thing_pose(0)
        across = np.array([-np.sin(self._jaw), np.cos(self._jaw), 0])
        sideways = self._rng.normal(0, 0.003)
        if self._mistake == "miss":
            sideways = self._rng.choice([-1, 1]) * self._rng.uniform(0.05, 0.065)
        spare = self._scene.things[0].half_size[2] - 0.02  # tall things may be held higher up
        return centre + sideways * across + [0, 0, self._rng.uniform(0, max(0.0, spare))]

    def _release_point(self) -> np.ndarray:
        """The position of the gripper at which the thing that it holds is above its goal."""
        gripper, _ = self._scene.gripper_pose()
        held, _ = self._scene.thing_pose(0)
        goal, _ = self._scene.thing_pose(1)
        half, goal_half = (self._scene.things[i].half_size[2] for i in (0, 1))
        if self._scene.task == "stack":
            height = goal[2] + goal_half + half + 0.003
        else:
            height = TABLE_HEIGHT + half + 0.03
        if self._mistake:  # the gripper holds nothing, but the motion continues
            return np.array([*goal[:2], height])
        return np.array([*goal[:2], height]) + gripper - held

    # ----------------------------------------------------------------- how to do it

    def _reach(
        self, goal: Callable[[], np.ndarray], tolerance: float, max_steps: int = 25
    ) -> Iterator[Command]:
        """Move until the gripper is within `tolerance` metres of `goal` and turned as it should."""
        for step in range(max_steps):
            position, rotation = self._scene.gripper_pose()
            offset, turn = goal() - position, self._turn(rotation)
            distance = np.linalg.norm(offset)
            if distance < tolerance and np.linalg.norm(turn) < 0.1:
                return
            speed = self._speed * min(1.0, 0.4 + 0.2 * step)  # a hand does not start abruptly
            offset = _limit(offset, speed) + self._next_drift() * min(1.0, distance / 0.08)
            yield self._command(_limit(offset, MAX_TRANSLATION), _limit(turn, MAX_ROTATION))

    def _hold(self, steps: int) -> Iterator[Command]:
        """Stay in place while the gripper opens or closes."""
        start, _ = self._scene.gripper_pose()
        for _ in range(steps):
            position, rotation = self._scene.gripper_pose()
            offset = _limit(start - position, MAX_TRANSLATION)
            yield self._command(offset, _limit(self._turn(rotation), MAX_ROTATION))

    def _command(self, offset: np.ndarray, turn: np.ndarray) -> Command:
        position, rotation = self._scene.gripper_pose()
        turned = Rotation.from_rotvec(turn).as_matrix() @ rotation
        return Command(position + offset, turned, self._grip)

    def _turn(self, rotation: np.ndarray) -> np.ndarray:
        """Rotation vector, in the world frame, to a gripper that points down at angle `_jaw`."""
        jaw = np.array([np.cos(self._jaw), np.sin(self._jaw), 0])
        down = np.array([0, 0, -1.0])
        wanted = np.stack([np.cross(jaw, down), jaw, down], axis=1)
        return Rotation.from_matrix(wanted @ rotation.T).as_rotvec()

    def _next_drift(self) -> np.ndarray:
        """The trembling of a hand, in metres: noise correlated over about a third of a second."""
        self._drift = 0.8 * self._drift + 0.6 * self._rng.normal(0, self._tremble, 3)
        return self._drift


def _limit(vector: np.ndarray, length: float) -> np.ndarray:
    """The vector, shortened to `length` if it is longer."""
    norm = np.linalg.norm(vector)
    return vector * (length / norm) if norm > length else vector
