"""robosuite's tasks with a Panda, and the looks of robomimic's data sets: 20 Hz, two cameras.

Pictures are ours, not robosuite's: its renderers spoil each other's pictures in one process. Runs
with robosuite 1.5.1 and 1.5.2. Made by `make_simulator`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import robosuite
from robosuite.controllers import load_composite_controller_config

from mcr.simulation.experts import EXPERTS, Hand
from mcr.simulation.looks import Looks
from mcr.simulation.rendering import Renderer, geoms_below, require_cameras
from mcr.simulation.simulator import Observation, PictureConfig

CAMERAS = ("agentview", "robot0_eye_in_hand")
CONTROL_HZ = 20  # robosuite's and robomimic's
_FINGERS_OPEN_M = 0.08


@dataclass(frozen=True)
class _Task:
    """robosuite's name; the bodies that it is about; steps of a rollout, twice an expert's."""

    environment: str
    bodies: tuple[str, ...]
    horizon: int


_TASKS = {
    "lift": _Task("Lift", ("cube_main",), 100),
    "stack": _Task("Stack", ("cubeA_main", "cubeB_main"), 200),
    "can": _Task("PickPlaceCan", ("Can_main",), 300),
    "square": _Task("NutAssemblySquare", ("SquareNut_main", "peg1"), 300),
}


def make_robosuite(name: str, pictures: PictureConfig, horizon: int) -> Robosuite:
    return Robosuite(name, pictures, horizon or _TASKS[name].horizon)


class Robosuite:
    """See `Simulator`. Actions [7] are those of robosuite's OSC_POSE: displacement of the gripper,
    1 = 5 cm; its rotation vector, 1 = 0.5 rad; fingers, negative opens and positive closes.

    Proprioception [10]: position of the gripper in metres; the first two columns of its rotation
    matrix, which unlike quaternions do not jump; opening of the fingers, 0..1.
    """

    def __init__(self, name: str, pictures: PictureConfig, horizon: int):
        self.task, self.horizon = f"robosuite/{name}", horizon
        self.cameras = pictures.cameras or CAMERAS
        self._name, self._world = name, _make_world(_TASKS[name].environment)
        model, data = self._world.sim.model._model, self._world.sim.data._data
        require_cameras(model, self.cameras)
        self._renderer = Renderer(model, data, pictures.picture_size, groups=(1,), sites=False)
        bodies = {model.body(body).id for body in _TASKS[name].bodies}
        gripper = self._world.robots[0].gripper["right"].root_body
        self._of_interest = geoms_below(model, {model.body(gripper).id, *bodies})
        self._looks = Looks(model, self._of_interest) if pictures.looks == "varied" else None
        self._hand = Hand(self._world)
        self.action_dim = 7

    def reset(self, seed: int) -> Observation:
        if self._looks:
            self._looks.draw(seed)
        with _numpy_seeded(seed):  # 1.5.1 draws from NumPy's generator, 1.5.2 from its own
            self._world.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
            self._world.reset()
        self._hand.closed = False
        self._plan = EXPERTS[self._name](self._hand, self._world)
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        self._world.step(np.clip(action, -1, 1).astype(np.float64))
        return self._observe(), bool(self._world._check_success())

    def expert(self) -> np.ndarray:
        return next(self._plan).astype(np.float32)

    def masks(self) -> dict[str, np.ndarray]:
        return {camera: self._renderer.mask(camera, self._of_interest) for camera in self.cameras}

    def close(self) -> None:
        self._renderer.close()
        self._world.close()

    def _observe(self) -> Observation:
        position, rotation = self._hand.pose()
        state = [position, rotation[:, 0], rotation[:, 1], np.array([self._opening()])]
        pictures = {f"{camera}_image": self._renderer.picture(camera) for camera in self.cameras}
        return pictures | {"proprioception": np.concatenate(state).astype(np.float32)}

    def _opening(self) -> float:
        fingers = self._world.robots[0]._ref_gripper_joint_pos_indexes["right"]
        left, right = self._world.sim.data.qpos[fingers]
        return (left - right) / _FINGERS_OPEN_M


def _make_world(environment: str) -> Any:
    # Lift draws its cube's size here, and keeps it.
    seed = {} if robosuite.__version__ == "1.5.1" else {"seed": 0}
    with _numpy_seeded(0):
        world = robosuite.make(
            environment,
            robots="Panda",
            controller_configs=load_composite_controller_config(robot="Panda"),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            control_freq=CONTROL_HZ,
            ignore_done=True,
            hard_reset=False,
            **seed,
        )
    return world


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Inside, NumPy's global generator begins at `seed`; outside nobody notices."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
