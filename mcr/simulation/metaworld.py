"""MetaWorld's tasks (metaworld 3) with its scripted experts.

Four of MetaWorld's habits are undone: it freezes scenes at the first draw, it hides the goal from
the experts, it clips the goal by bounds that it cached while the goal was hidden, and its cameras
hang upside down. `make_simulator` makes these simulators.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from mcr.simulation.randomization import VisualRandomization
from mcr.simulation.rendering import Renderer, geoms_below, require_cameras
from mcr.simulation.simulator import Observation, PictureConfig

# The experts' actions exceed the limits on purpose. MetaWorld clips them, and so do we.
warnings.filterwarnings("ignore", "Constant.* may be too high", module="metaworld")

CAMERAS = ("corner2",)
_CORNER2 = (0.75, 0.075, 0.7)  # closer to the table than MetaWorld's, as in most published work
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
_FURNITURE = ("tablelink", "RetainingWall", "base", "mocap")  # other bodies belong to the task
# The experts need 90 steps on average. Of 200 runs the longest, with a second attempt, took 268.
_HORIZON = 300


def make_metaworld(name: str, pictures: PictureConfig, horizon: int) -> MetaWorld:
    return MetaWorld(name, pictures, horizon or _HORIZON)


class MetaWorld:
    """A MetaWorld task; see `Simulator`.

    Actions [4]: displacement of the hand, 1 = 1 cm; force of the fingers.
    Proprioception [4]: position of the hand in metres; opening of the fingers, 0..1.
    State [39]: MetaWorld's own. Proprioception, and position [3] and quaternion [4] of two objects,
    now and one step ago; position of the goal [3]. What a task lacks is 0.
    """

    def __init__(self, name: str, pictures: PictureConfig, horizon: int):
        self.task, self.horizon = f"metaworld/{name}", horizon
        self.cameras = pictures.chosen_cameras(CAMERAS)
        self._world = _make_world(f"{name}-v3")
        model = self._world.model
        require_cameras(model, self.cameras)
        _mend_cameras(model)
        self._renderer = Renderer(
            model, self._world.data, pictures.picture_size, (0, 1, 2), sites=True
        )
        of_task = {
            body
            for body in range(1, model.nbody)
            if model.body_parentid[body] == 0 and model.body(body).name not in _FURNITURE
        }
        self._of_interest = geoms_below(model, {model.body("right_hand").id, *of_task})
        self._randomization = VisualRandomization(model, self._of_interest, pictures.looks)
        make_expert: Any = ENV_POLICY_MAP[f"{name}-v3"]  # MetaWorld types it as an abstract class
        self._expert = make_expert()
        self.action_dim = 4

    def reset(self, seed: int) -> Observation:
        self._randomization.draw(seed)
        self._world.seed(seed)
        self._state, _ = self._world.reset()
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        action = np.clip(action, -1, 1).astype(np.float32)
        self._state, _, _, _, facts = self._world.step(action)
        return self._observe(), facts["success"] > 0

    def expert(self) -> np.ndarray:
        return self._expert.get_action(self._state).clip(-1, 1).astype(np.float32)

    def state(self) -> np.ndarray:
        return self._state.astype(np.float32)

    def masks(self) -> dict[str, np.ndarray]:
        return {camera: self._renderer.mask(camera, self._of_interest) for camera in self.cameras}

    def close(self) -> None:
        self._renderer.close()
        self._world.close()

    def _observe(self) -> Observation:
        pictures = {f"{camera}_image": self._renderer.picture(camera) for camera in self.cameras}
        return pictures | {"proprioception": self._state[:4].astype(np.float32)}


def _make_world(name: str) -> Any:
    world = ALL_V3_ENVIRONMENTS[name]()
    world._freeze_rand_vec, world.seeded_rand_vec = False, True  # each reset draws from the seed
    world._partially_observable = False  # the experts need the goal's position
    world.__dict__.pop("sawyer_observation_space", None)  # the cached bounds
    world._set_task_called = True
    world.max_path_length = sys.maxsize  # rollouts count their own steps
    return world


def _mend_cameras(model: mujoco.MjModel) -> None:
    model.cam_pos[model.camera("corner2").id] = _CORNER2
    for name in _UPSIDE_DOWN:
        quat = model.cam_quat[model.camera(name).id]
        mujoco.mju_mulQuat(quat, quat.copy(), np.array([0.0, 0, 0, 1]))  # half a turn
