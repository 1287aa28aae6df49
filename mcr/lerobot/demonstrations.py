"""Demonstrations of PushT (gym-pusht), written by LeRobot's own writer: data to try things on.

PushT: a disc pushes a T-shaped block towards a T on the table. The expert is scripted. It pushes
the block's centre of mass to that of its goal, and does not turn the block, so it covers about a
third of the goal. Success means 95%. Called by scripts/record_pusht.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mcr.errors import UserError, import_extra
from mcr.lerobot.compatibility import require_lerobot

require_lerobot()
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

_FPS = 10  # of PushT
_TASK = "Push the T-shaped block onto the T-shaped target."
_SIZE = 96  # pixels of a picture, as LeRobot's evaluation renders it
_FEATURES = {
    "observation.image": {
        "dtype": "video",
        "shape": (_SIZE, _SIZE, 3),
        "names": ["height", "width", "channels"],
    },
    "observation.state": {"dtype": "float32", "shape": (2,), "names": {"axes": ["x", "y"]}},
    "action": {"dtype": "float32", "shape": (2,), "names": {"axes": ["x", "y"]}},
}
# All in the units of PushT's table, which is 512 wide.
_CLEARANCE = 95.0  # of the disc from the block's centre while it goes around
_REACH = 25.0  # of a step while it pushes
_ARRIVED = 15.0


def record_pusht(root: str | Path, episodes: int = 20, steps: int = 60, seed: int = 0) -> float:
    """Record episodes of the scripted expert as a LeRobotDataset in the folder `root`.

    root:    must not exist
    steps:   of an episode
    returns: mean share of the goal that the block covers at the end, 0..1
    raises:  UserError if `root` exists or gym-pusht is not installed
    """
    root = Path(root)
    if root.exists():
        raise UserError(f"{root} exists: give another folder or delete it")
    simulator = _open_simulator()
    data = LeRobotDataset.create(
        repo_id=f"local/{root.name}", fps=_FPS, features=_FEATURES, root=root, robot_type="pusht"
    )
    coverages = []
    for episode in range(episodes):
        coverages.append(_record_episode(simulator, data, steps, seed + episode))
        data.save_episode()
    data.finalize()
    simulator.close()
    return float(np.mean(coverages))


def _open_simulator() -> Any:
    """PushT with raw pictures and the disc's position as observation."""
    import_extra("gym_pusht", "lerobot-policies")  # importing it registers PushT
    import gymnasium

    return gymnasium.make(
        "gym_pusht/PushT-v0",
        obs_type="pixels_agent_pos",
        observation_width=_SIZE,
        observation_height=_SIZE,
        disable_env_checker=True,
    )


def _record_episode(simulator: Any, data: LeRobotDataset, steps: int, seed: int) -> float:
    """Add the frames of an episode, and return the share of the goal that is covered at its end."""
    observation, info = simulator.reset(seed=seed)
    for _ in range(steps):
        action = expert_action(simulator.unwrapped)
        data.add_frame(
            {
                "observation.image": observation["pixels"],
                "observation.state": observation["agent_pos"].astype(np.float32),
                "action": action,
                "task": _TASK,
            }
        )
        observation, _, _, _, info = simulator.step(action)
    return float(info["coverage"])


def expert_action(simulator: Any) -> np.ndarray:
    """Where the disc should go next, float32 [2], by the state of PushT's simulator.

    It goes around the block to the side that faces away from the goal, and pushes from there.
    """
    block = simulator.block
    goal = simulator.get_goal_pose_body(simulator.goal_pose)
    goal.center_of_gravity = block.center_of_gravity
    disc = np.array(simulator.agent.position)
    centre, target = (
        np.array(body.local_to_world(body.center_of_gravity)) for body in (block, goal)
    )
    distance = float(np.linalg.norm(target - centre))
    if distance < _ARRIVED:
        return disc.astype(np.float32)
    ahead = (target - centre) / distance
    side = np.array([-ahead[1], ahead[0]])
    along, across = (disc - centre) @ ahead, (disc - centre) @ side
    if along < 0 and abs(across) < 10:  # behind the block: push
        step = disc + ahead * min(_REACH, distance) - side * across
    elif along < -_CLEARANCE / 2:
        step = disc - side * np.clip(across, -2 * _REACH, 2 * _REACH)
    else:  # beside it or in front of it: go around
        direction = np.sign(across) or 1.0
        angle = np.arctan2(across, along) + direction * np.pi / 5
        step = centre + _CLEARANCE * (np.cos(angle) * ahead + np.sin(angle) * side)
    return step.clip(15, 497).astype(np.float32)
