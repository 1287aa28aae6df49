"""Demonstrations of robosuite's Lift by a scripted expert, in robomimic's HDF5 format.

They are enough to train and try a policy without downloading anything. Called by
scripts/record_lift.py and `comparison`.

    data                 attrs: env_args (JSON: how to make the simulator), total
    data/demo_0          attrs: num_samples, model_file (the scene as MuJoCo XML)
        actions          float64 [T, 7]   displacement, rotation, gripper (-1 open .. 1 closed)
        states           float64 [T, S]   the simulator's, to replay an episode
        rewards, dones   float64, int64 [T]   1 if the cube is lifted after the action
        obs, next_obs    agentview_image, robot0_eye_in_hand_image  uint8 [T, H, W, 3]
                         robot0_eef_pos [T, 3], robot0_eef_quat [T, 4], robot0_gripper_qpos [T, 2]
    mask/train  mask/valid   names of demonstrations: of every ten, nine and one
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mcr.errors import UserError
from mcr.robomimic.simulator import RobosuiteSimulator
from mcr.runs.atomic import atomic_path
from mcr.simulation.recorder import write_split

CAMERAS = ("agentview", "robot0_eye_in_hand")
CONTROL_HZ = 20  # robosuite's and robomimic's
MAX_STEPS = 150
_STEPS_AFTER_SUCCESS = 5
_MAX_STEP_M, _MAX_STEP_RAD = 0.05, 0.5  # how far the Panda's controller moves for an action of 1
_HOVER_M, _LIFT_M = 0.10, 0.12
_GRASP_STEPS = 8

Record = dict[str, Any]  # of one step: actions, states, rewards, dones, obs, next_obs


@dataclass(frozen=True)
class Recording:
    """The result of `record_lift`: demonstrations, attempts that they took, and their steps."""

    demonstrations: int
    attempts: int
    steps: int


def record_lift(
    path: str | Path,
    num_demonstrations: int = 40,
    image_size: int = 84,
    noise: float = 0.2,
    seed: int = 0,
) -> Recording:
    """Write `num_demonstrations` successful demonstrations to `path`. Failures are not kept.

    noise: standard deviation of the noise on executed actions, in units of the largest action. It
        shows a policy states beside the expert's path. The stored action is the expert's, without
        the noise (DART, arXiv 1703.09327).
    seed: of the cube's place and the noise. It also seeds NumPy's global generator, which the
        simulator uses.
    raises: UserError if `path` exists, or if the expert fails too often.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists: give another name or delete it")
    # With `seed` alone, robomimic's rollouts with the same seed would repeat these scenes.
    np.random.seed([seed, num_demonstrations])
    simulator = make_lift(image_size)
    rng = np.random.default_rng(seed)
    steps = attempts = kept = 0
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        while kept < num_demonstrations:
            attempts += 1
            if attempts > 2 * num_demonstrations + 10:
                raise UserError(
                    f"the expert succeeded {kept} times in {attempts - 1}: noise={noise} is too "
                    "much for it"
                )
            episode = list(_demonstrate(simulator, rng, noise))
            if not episode[-1]["dones"]:
                continue
            group = file.create_group(f"data/demo_{kept}")
            group.attrs["model_file"] = simulator.get_state()["model"]
            _write_episode(group, episode)
            kept, steps = kept + 1, steps + len(episode)
        env_args = json.dumps(simulator.serialize(), indent=4)
        file["data"].attrs.update(env_args=env_args, total=steps)
        write_split(file, num_demonstrations)
    return Recording(kept, attempts, steps)


def make_lift(image_size: int) -> RobosuiteSimulator:
    """Lift with a Panda, made as robomimic makes it to extract observations for a data set."""
    from robosuite.controllers import load_composite_controller_config

    return RobosuiteSimulator.create_for_data_processing(
        env_name="Lift",
        camera_names=CAMERAS,
        camera_height=image_size,
        camera_width=image_size,
        reward_shaping=False,
        robots="Panda",
        controller_configs=load_composite_controller_config(robot="Panda"),
        control_freq=CONTROL_HZ,
        hard_reset=False,
        light_rendering=True,
    )


class LiftExpert:
    """Moves over the cube, down to it, closes the gripper and lifts. It knows the cube's pose."""

    def __init__(self, simulator: RobosuiteSimulator):
        self._world = simulator.env
        self._phase = "hover"
        self._steps_closing = 0
        self._top = np.zeros(3)  # where it lifts the cube to

    def __call__(self) -> np.ndarray:
        """The action for the present state, float64 [7] in [-1, 1]."""
        position, rotation = self._gripper()
        goal, cube_rotation = self._cube()
        turn = _turn_to(rotation, cube_rotation)
        if self._phase == "hover":
            goal = goal + [0, 0, _HOVER_M]
            if np.linalg.norm(goal - position) < 0.015 and abs(turn) < 0.06:
                self._phase = "descend"
        elif self._phase == "descend":
            if np.linalg.norm(goal - position) < 0.01:
                self._phase = "close"
        elif self._phase == "close":
            turn, self._steps_closing = 0.0, self._steps_closing + 1
            if self._steps_closing == _GRASP_STEPS:
                self._phase, self._top = "lift", position + [0, 0, _LIFT_M]
        if self._phase == "lift":
            goal, turn = self._top, 0.0
        tilt = np.cross(rotation[:, 2], [0, 0, -1])  # keeps the hand pointing down
        move = np.concatenate(
            [(goal - position) / _MAX_STEP_M, (tilt + [0, 0, turn]) / _MAX_STEP_RAD]
        )
        closed = self._phase in ("close", "lift")
        return np.append(move.clip(-1, 1), 1.0 if closed else -1.0)

    def _gripper(self) -> tuple[np.ndarray, np.ndarray]:
        data, site = self._world.sim.data, self._world.robots[0].eef_site_id["right"]
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()

    def _cube(self) -> tuple[np.ndarray, np.ndarray]:
        data, body = self._world.sim.data, self._world.cube_body_id
        return data.body_xpos[body].copy(), data.body_xmat[body].reshape(3, 3).copy()


def _turn_to(gripper: np.ndarray, cube: np.ndarray) -> float:
    """Angle about the vertical from the jaws' axis to the nearest side of the cube, radians."""
    jaw, side = np.arctan2(gripper[1, 1], gripper[0, 1]), np.arctan2(cube[1, 0], cube[0, 0])
    quarter = np.pi / 2
    return float((side - jaw + quarter / 2) % quarter - quarter / 2)


def _demonstrate(
    simulator: RobosuiteSimulator, rng: np.random.Generator, noise: float
) -> Iterator[Record]:
    """The steps of one attempt. It ends a few steps after success, or after MAX_STEPS."""
    observation = simulator.reset()
    expert = LiftExpert(simulator)
    successes = 0
    for _ in range(MAX_STEPS):
        state = simulator.get_state()["states"]
        action = expert()
        executed = action.copy()
        executed[:6] = (action[:6] + rng.normal(0, noise, 6)).clip(-1, 1)
        following, reward, _, _ = simulator.step(executed)
        success = simulator.is_success()["task"]
        yield {
            "actions": action,
            "states": state,
            "rewards": float(reward),
            "dones": int(success),
            "obs": observation,
            "next_obs": following,
        }
        observation = following
        successes += success
        if successes > _STEPS_AFTER_SUCCESS:
            return


def _write_episode(group: h5py.Group, episode: list[Record]) -> None:
    group.attrs["num_samples"] = len(episode)
    for name in ("actions", "states", "rewards", "dones"):
        group.create_dataset(name, data=np.array([record[name] for record in episode]))
    for name in ("obs", "next_obs"):
        for key in episode[0][name]:
            values = np.stack([record[name][key] for record in episode])
            is_picture = values.dtype == np.uint8
            layout = {"chunks": (1, *values.shape[1:]), "compression": "gzip"} if is_picture else {}
            group.create_dataset(f"{name}/{key}", data=values, **layout)
