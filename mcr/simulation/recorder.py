"""Demonstrations of a scripted expert, in robomimic's HDF5 format: what policies learn from.

The simulator is any that follows `Simulator`. There is no learning here and no torch. Called by
`mcr record`, `evaluation.success_rates` and `robomimic.demonstrations`, which writes more of each
step. T steps, A action, P proprioception, H W pixels:

    data                   attrs: env_args (JSON: task, how pictures are taken, noise, seed), total
    data/demo_0            attrs: num_samples, seed (of the scene)
        actions            float32 [T, A]   the expert's answer to the observation
        rewards, dones     float32, uint8 [T]   1 where the task is done after the action
        obs                <camera>_image  uint8 [T, H, W, 3], proprioception  float32 [T, P]
                           with masks: <camera>_mask  uint8 [T, H, W], 1 = gripper or object
    mask/train  mask/valid   names of demonstrations: of every ten, nine and one
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcr.errors import UserError, import_extra
from mcr.runs.atomic import atomic_path
from mcr.runs.processes import progress_bar
from mcr.simulation.simulator import Observation, PictureConfig, Simulator
from mcr.simulation.tasks import make_simulator

if TYPE_CHECKING:
    import h5py

_STEPS_AFTER_SUCCESS = 5  # so that a policy learns to stay there


@dataclass(frozen=True)
class Demonstration:
    """One successful attempt of T steps.

    scene:        seed of the scene
    observations: T + 1; the last one follows the last action
    states:       T, the true states of the scene, see `Simulator.state`
    actions:      T, the expert's answers to the observations, without noise
    successes:    T, whether the task is done after the action
    masks:        T times camera -> bool [H, W], or empty
    """

    scene: int
    observations: list[Observation]
    states: list[np.ndarray]
    actions: list[np.ndarray]
    successes: list[bool]
    masks: list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class RecordingSummary:
    """The result: number of demonstrations kept, of attempts, and of steps in those kept."""

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
) -> RecordingSummary:
    """Write `count` successful demonstrations to `path`; failures are not kept.

    noise: standard deviation of the noise on the executed action, in units of the largest action.
        It visits states beside the expert's path. The gripper has none. The stored action is
        without it (DART, arXiv 1703.09327).
    seed: of noise and scenes. Scenes have seeds of 31 random bits, which small seeds of rollouts
        hardly ever meet.
    masks: also write where gripper and objects are seen
    raises: UserError when `path` exists, the expert fails too often, or as `make_simulator`.
    """
    path = Path(path)
    require_new(path, count)
    import_extra("h5py", "hdf5")  # before the work
    simulator = make_simulator(task, pictures)
    about = {
        "task": task,
        **asdict(pictures or PictureConfig()),
        "cameras": simulator.cameras,
        "noise": noise,
        "seed": seed,
    }
    return write_demonstrations(simulator, path, _write, about, count, noise, seed, masks)


def require_new(path: Path, count: int) -> None:
    """Raise UserError if `path` exists or `count` demonstrations are fewer than one."""
    if path.exists():
        raise UserError(f"{path} exists: give another name or delete it")
    if count < 1:
        raise UserError(f"count={count}: record at least 1 demonstration")


def write_demonstrations(
    simulator: Simulator,
    path: Path,
    write: Callable[[h5py.Group, Demonstration], None],
    env_args: Mapping[str, Any],
    count: int,
    noise: float,
    seed: int,
    masks: bool = False,
) -> RecordingSummary:
    """Write `count` successful demonstrations of a simulator, which is closed at the end.

    write:    writes one to its group; the simulator is still as it was after the last step
    env_args: what it takes to make the simulator again
    The rest is as for `record_demonstrations`.
    """
    hdf5 = import_extra("h5py", "hdf5")
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    attempts = kept = steps = 0
    try:
        with (
            atomic_path(path) as partial,
            hdf5.File(partial, "w") as file,
            progress_bar(None, simulator.task, "demonstration", count) as bar,
        ):
            while kept < count:
                if attempts == 2 * count + 10:
                    raise UserError(
                        f"{simulator.task}: the expert succeeded {kept} times in {attempts}; "
                        f"noise={noise} may be too much for it"
                    )
                attempts += 1
                demonstration = _attempt(simulator, rng, noise, masks)
                if any(demonstration.successes):
                    group = file.create_group(f"data/demo_{kept}")
                    group.attrs["num_samples"] = len(demonstration.actions)
                    write(group, demonstration)
                    kept, steps = kept + 1, steps + len(demonstration.actions)
                    bar.update()
            file["data"].attrs.update(env_args=json.dumps(env_args, indent=4), total=steps)
            write_split(file, count)
    finally:
        simulator.close()
    return RecordingSummary(kept, attempts, steps)


def _attempt(
    simulator: Simulator, rng: np.random.Generator, noise: float, masks: bool
) -> Demonstration:
    """One attempt, until some steps after success or the task's horizon."""
    scene = int(rng.integers(2**31))
    made = Demonstration(scene, [simulator.reset(scene)], [], [], [], [])
    while len(made.actions) < simulator.horizon and sum(made.successes) <= _STEPS_AFTER_SUCCESS:
        if masks:
            made.masks.append(simulator.masks())
        made.states.append(simulator.state())
        action = simulator.expert()
        disturbance = np.append(rng.normal(0, noise, simulator.action_dim - 1), 0)
        observation, success = simulator.step(action + disturbance)
        made.observations.append(observation)
        made.actions.append(action)
        made.successes.append(success)
    return made


def _write(group: h5py.Group, made: Demonstration) -> None:
    group.attrs["seed"] = made.scene
    write_steps(group, "obs", made.observations[:-1])
    write_steps(group, "obs", [{f"{k}_mask": m for k, m in each.items()} for each in made.masks])
    write_outcome(group, made)


def write_outcome(group: h5py.Group, made: Demonstration) -> None:
    """actions, rewards, dones."""
    group.create_dataset("actions", data=np.stack(made.actions))
    group.create_dataset("rewards", data=np.array(made.successes, np.float32))
    group.create_dataset("dones", data=np.array(made.successes, np.uint8))


def write_steps(group: h5py.Group, name: str, steps: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write what each step holds, key by key: `name`/<key>, [T, ...]."""
    for key in steps[0] if steps else ():
        values = np.stack([step[key] for step in steps])
        if values.ndim > 2:  # a picture or mask can be read without the others
            layout = {"chunks": (1, *values.shape[1:]), "compression": "gzip"}
            group.create_dataset(f"{name}/{key}", data=values.astype(np.uint8), **layout)
        else:
            group.create_dataset(f"{name}/{key}", data=values)


def write_split(file: h5py.File, num_demonstrations: int) -> None:
    """mask/train and mask/valid: every tenth is held out; of fewer than ten, the last."""
    names = np.array([f"demo_{i}" for i in range(num_demonstrations)], dtype="S")
    held_out = np.arange(num_demonstrations) % 10 == min(9, num_demonstrations - 1)
    file["mask/train"], file["mask/valid"] = names[~held_out], names[held_out]
