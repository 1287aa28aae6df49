"""robosuite's tasks with a Panda, as in robomimic's data sets: 20 Hz, two cameras.

`Renderer` renders the pictures, because several of robosuite's own renderers disturb each other in
one process. It runs with robosuite 1.5.1 and 1.5.2. `make_simulator` makes these simulators.
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
from mcr.simulation.randomization import VisualRandomization
from mcr.simulation.rendering import Renderer, geoms_below, require_cameras
from mcr.simulation.simulator import Observation, PictureConfig

CAMERAS = ("agentview", "robot0_eye_in_hand")
CONTROL_HZ = 20  # robosuite's and robomimic's
_FINGERS_OPEN_M = 0.08


@dataclass(frozen=True)
class _Task:
    """A task.

    environment: robosuite's name of it
    bodies:      MuJoCo's names of the objects to be manipulated, and of their goals
    horizon:     steps of a rollout, twice as many as an expert needs
    """

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
    """A robosuite task; see `Simulator`.

    Actions [7] are those of robosuite's OSC_POSE: displacement of the gripper, 1 = 5 cm; its
    rotation vector, 1 = 0.5 rad; fingers, negative opens and positive closes.
    Proprioception [10]: position of the gripper in metres; the first two columns of its rotation
    matrix, which are continuous, unlike quaternions; opening of the fingers, 0..1.
    State [10 + 18 K]: proprioception, and of each of the K bodies of the task position and the same
    two columns, first in the world's frame, then in the gripper's.
    """

    def __init__(self, name: str, pictures: PictureConfig, horizon: int):
        self.task, self.horizon = f"robosuite/{name}", horizon
        self.cameras = pictures.chosen_cameras(CAMERAS)
        self._name, self._world = name, _make_world(_TASKS[name].environment)
        model, data = self._world.sim.model._model, self._world.sim.data._data
        require_cameras(model, self.cameras)
        self._renderer = Renderer(model, data, pictures.picture_size, groups=(1,), sites=False)
        self._bodies = [model.body(body).id for body in _TASKS[name].bodies]
        gripper = self._world.robots[0].gripper["right"].root_body
        self._of_interest = geoms_below(model, {model.body(gripper).id, *self._bodies})
        self._randomization = VisualRandomization(model, self._of_interest, pictures.looks)
        self._hand = Hand(self._world)
        self.action_dim = 7

    def reset(self, seed: int) -> Observation:
        self._randomization.draw(seed)
        reset_world(self._world, seed)
        self._hand.closed = False
        self._plan = EXPERTS[self._name](self._hand, self._world)
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        self._world.step(np.clip(action, -1, 1).astype(np.float64))
        return self._observe(), bool(self._world._check_success())

    def expert(self) -> np.ndarray:
        return next(self._plan).astype(np.float32)

    def state(self) -> np.ndarray:
        data, (hand, frame) = self._world.sim.data, self._hand.pose()
        parts = [self._proprioception()]
        for body in self._bodies:
            position, rotation = data.body_xpos[body], data.body_xmat[body].reshape(3, 3)
            relative = frame.T @ (position - hand), frame.T @ rotation
            for place, turned in ((position, rotation), relative):
                parts += [place, turned[:, 0], turned[:, 1]]
        return np.concatenate(parts).astype(np.float32)

    def masks(self) -> dict[str, np.ndarray]:
        return {camera: self._renderer.mask(camera, self._of_interest) for camera in self.cameras}

    def close(self) -> None:
        self._renderer.close()
        self._world.close()

    def _observe(self) -> Observation:
        pictures = {f"{camera}_image": self._renderer.picture(camera) for camera in self.cameras}
        return pictures | {"proprioception": self._proprioception()}

    def _proprioception(self) -> np.ndarray:
        position, rotation = self._hand.pose()
        fingers = self._world.robots[0]._ref_gripper_joint_pos_indexes["right"]
        left, right = self._world.sim.data.qpos[fingers]
        opening = (left - right) / _FINGERS_OPEN_M
        parts = [position, rotation[:, 0], rotation[:, 1], np.array([opening])]
        return np.concatenate(parts).astype(np.float32)


def reset_world(world: Any, seed: int) -> None:
    """Reset robosuite's environment to a scene that depends on the seed alone."""
    with _numpy_seeded(seed):  # 1.5.1 draws from NumPy's generator, 1.5.2 from its own
        world.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        world.reset()


def _make_world(environment: str) -> Any:
    # Lift draws the size of its cube once, here.
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
    """Seed NumPy's global generator within the block, and restore its state afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
