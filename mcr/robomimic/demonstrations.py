"""Demonstrations of robosuite's Lift with robomimic's own observations, for its policies.

They are made by the recorder and the expert of `mcr.simulation`. They suffice to train and try a
policy without a download. Called by scripts/record_lift.py and `comparison`.

    data                 attrs: env_args (JSON: how to make the simulator), total
    data/demo_0          attrs: num_samples, model_file (the scene as MuJoCo XML)
        actions          float64 [T, 7]   displacement, rotation, gripper (-1 open .. 1 closed)
        states           float64 [T, S]   the simulator's, to replay an episode
        rewards, dones   float32, uint8 [T]   1 if the cube is lifted after the action
        obs, next_obs    agentview_image, robot0_eye_in_hand_image  uint8 [T, H, W, 3]
                         robot0_eef_pos [T, 3], robot0_eef_quat [T, 4], robot0_gripper_qpos [T, 2]
    mask/train  mask/valid   names of demonstrations: of every ten, nine and one
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from mcr.robomimic.simulator import RobosuiteSimulator
from mcr.simulation.experts import EXPERTS, Hand
from mcr.simulation.recorder import (
    Demonstration,
    RecordingSummary,
    require_new,
    write_demonstrations,
    write_outcome,
    write_steps,
)
from mcr.simulation.robosuite import CAMERAS, CONTROL_HZ, reset_world
from mcr.simulation.simulator import Observation

MAX_STEPS = 150


def record_lift(
    path: str | Path,
    num_demonstrations: int = 40,
    image_size: int = 84,
    noise: float = 0.2,
    seed: int = 0,
) -> RecordingSummary:
    """Write `num_demonstrations` successful demonstrations to `path`. Failures are not kept.

    image_size: height and width in pixels
    noise, seed: as for `mcr.simulation.recorder.record_demonstrations`
    raises: UserError if `path` exists, or if the expert fails too often.
    """
    path = Path(path)
    require_new(path, num_demonstrations)
    lift = Lift(image_size)
    env_args = lift.simulator.serialize()
    return write_demonstrations(lift, path, lift.write, env_args, num_demonstrations, noise, seed)


class Lift:
    """robomimic's Lift as a `mcr.simulation.simulator.Simulator`, for the recorder.

    Its states are those of the physics, from which it can be replayed.
    """

    task, action_dim, horizon = "robosuite/lift", 7, MAX_STEPS
    cameras: tuple[str, ...] = CAMERAS

    def __init__(self, image_size: int):
        self.simulator = make_lift(image_size)

    def reset(self, seed: int) -> Observation:
        world = self.simulator.env
        reset_world(world, seed)
        self._plan = EXPERTS["lift"](Hand(world), world)
        return self.simulator.get_observation()

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        observation, *_ = self.simulator.step(action.clip(-1, 1))
        return observation, bool(self.simulator.is_success()["task"])

    def expert(self) -> np.ndarray:
        return next(self._plan)

    def state(self) -> np.ndarray:
        return self.simulator.get_state()["states"]

    def masks(self) -> dict[str, np.ndarray]:
        return {}

    def close(self) -> None:
        self.simulator.env.close()

    def write(self, group: h5py.Group, made: Demonstration) -> None:
        """Write all that robomimic's own tools would."""
        group.attrs["model_file"] = self.simulator.get_state()["model"]
        group.create_dataset("states", data=np.stack(made.states))
        write_steps(group, "obs", made.observations[:-1])
        write_steps(group, "next_obs", made.observations[1:])
        write_outcome(group, made)


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
