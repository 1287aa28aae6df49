"""Demonstrations of a scripted expert, in robomimic's HDF5 format: what policies learn from.

Of any task of `tasks`; there is no learning here. Called by `mcr record`
and `mcr evaluate`. T steps, A action, P proprioception, H W pixels:

    data                   attrs: env_args (JSON: task, how pictures are taken, noise, seed), total
    data/demo_0            attrs: num_samples, seed (of the scene)
        actions            float32 [T, A]   the expert's answer to the observation
        rewards, dones     float32, uint8 [T]   1 where the task is done after the action
        obs                <camera>_image  uint8 [T, H, W, 3], proprioception  float32 [T, P]
                           with masks: <camera>_mask  uint8 [T, H, W], 1 = gripper or object
    mask/train  mask/valid   names of demonstrations, nine and one of ten
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcr.errors import UserError, import_extra
from mcr.runs.processes import progress_bar
from mcr.simulation.simulator import PictureConfig, Simulator
from mcr.simulation.tasks import make_simulator

if TYPE_CHECKING:
    import h5py

_STEPS_AFTER_SUCCESS = 5  # so that a policy learns to stay there

Step = dict[str, Any]  # actions, rewards, dones, and an observation's keys below obs/


@dataclass(frozen=True)
class Recording:
    """What came of it: demonstrations kept, attempts made for them, steps in those kept."""

    demonstrations: int
    attempts: int
    steps: int


def record_demonstrations(
    task: str,
    path: str | Path,
    count: int = 25,
    noise: float = 0.1,
    seed: int = 0,
    masks: bool = False,
    pictures: PictureConfig | None = None,
) -> Recording:
    """Write `count` successful demonstrations to `path`; failures are not kept.

    noise: deviation of what is added to the executed action, in units of the largest action and
        not to the gripper, so that states next to the expert's path are seen too. The action that
        is stored is without it (DART, arXiv 1703.09327).
    seed: of noise and scenes. Scenes have seeds of 31 random bits, which small seeds of rollouts
        hardly ever meet.
    masks: write where gripper and objects are seen, too
    raises: UserError when `path` exists, the expert fails too often, or as `make_simulator`.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists: give another name or delete it")
    if count < 1:
        raise UserError(f"count={count}: record at least 1 demonstration")
    hdf5 = import_extra("h5py", "hdf5")
    simulator = make_simulator(task, pictures)
    about = {
        "task": task,
        **asdict(pictures or PictureConfig()),
        "cameras": simulator.cameras,
        "noise": noise,
        "seed": seed,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with hdf5.File(partial, "w") as file:
            recording = _record(file, simulator, count, noise, seed, masks)
            file["data"].attrs.update(env_args=json.dumps(about, indent=4), total=recording.steps)
            write_split(file, count)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        simulator.close()
    return recording


def write_split(file: h5py.File, num_demonstrations: int) -> None:
    """mask/train and mask/valid: every tenth is held out; of fewer than ten, the last."""
    names = np.array([f"demo_{i}" for i in range(num_demonstrations)], dtype="S")
    held_out = np.arange(num_demonstrations) % 10 == min(9, num_demonstrations - 1)
    file["mask/train"], file["mask/valid"] = names[~held_out], names[held_out]


def _record(
    file: h5py.File, simulator: Simulator, count: int, noise: float, seed: int, masks: bool
) -> Recording:
    rng = np.random.default_rng(seed)
    attempts = kept = steps = 0
    with progress_bar(None, simulator.task, "demonstration", count) as bar:
        while kept < count:
            if attempts == 2 * count + 10:
                raise UserError(
                    f"{simulator.task}: the expert succeeded {kept} times in {attempts}; "
                    f"noise={noise} may be too much for it"
                )
            attempts += 1
            scene = int(rng.integers(2**31))
            episode = list(_demonstrate(simulator, scene, rng, noise, masks))
            if any(step["dones"] for step in episode):
                group = file.create_group(f"data/demo_{kept}")
                group.attrs["seed"] = scene
                _write_episode(group, episode)
                kept, steps = kept + 1, steps + len(episode)
                bar.update()
    return Recording(kept, attempts, steps)


def _demonstrate(
    simulator: Simulator, scene: int, rng: np.random.Generator, noise: float, masks: bool
) -> Iterator[Step]:
    """One attempt, step by step, until some steps after success or the task's horizon."""
    observation = simulator.reset(scene)
    successes = 0
    for _ in range(simulator.horizon):
        seen = {f"obs/{key}": value for key, value in observation.items()}
        if masks:
            seen |= {f"obs/{camera}_mask": mask for camera, mask in simulator.masks().items()}
        action = simulator.expert()
        disturbance = np.append(rng.normal(0, noise, simulator.action_dim - 1), 0)
        observation, success = simulator.step(action + disturbance)
        yield seen | {
            "actions": action,
            "rewards": np.float32(success),
            "dones": np.uint8(success),
        }
        successes += success
        if successes > _STEPS_AFTER_SUCCESS:
            return


def _write_episode(group: h5py.Group, episode: list[Step]) -> None:
    group.attrs["num_samples"] = len(episode)
    for key in episode[0]:
        values = np.stack([step[key] for step in episode])
        if values.ndim > 2:  # pictures and masks: one can be read without the others
            group.create_dataset(
                key,
                data=values.astype(np.uint8),
                chunks=(1, *values.shape[1:]),
                compression="gzip",
            )
        else:
            group.create_dataset(key, data=values)
