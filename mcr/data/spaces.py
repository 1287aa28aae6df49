"""Spaces: which signals are a robot's state and action, and in what form the losses see them.

The index stores signals as they were recorded. A `Space` selects the columns that a recipe names
and computes derived numbers from them, batch by batch in `loader.py`. Derived numbers are not
stored. `data.action_space` is one of

    default             the action that the schema names; in DROID the same numbers as
                        cartesian_position
    cartesian_position  commanded pose (xyz in m, Euler angles; base frame), gripper position
    cartesian_velocity  commanded velocity of the pose, gripper velocity
    joint_position      commanded joint angles, gripper position
    joint_velocity      commanded joint velocities, gripper velocity
    delta               commanded pose relative to the observed one, gripper position (absolute):
                        p_commanded - p_observed in the base frame, R_observed^T R_commanded
    motion              for pretraining: the first of cartesian_velocity, delta and default that the
                        data set has. A motion depends on what is in the picture; a pose can
                        nearly be read from the robot's state

All but `default` come from `action_dict`. DROID's robot interface takes the gripper as a velocity
in the velocity spaces and as a position in the others, and so do we. (openpi's policies for DROID
always use a position.) DROID's velocities are shares of the controller's limits, -1 .. 1.

`data.rotation` says how rotations are written where the schema of the data set says that there are
any (`Schema.rotations`). "euler" is three angles, which jump at +-pi. "6d" is the first two columns
of the rotation matrix, one after the other (Zhou et al., CVPR 2019, arXiv 1812.07035), which is
continuous. DROID's angles turn about the fixed axes x, y, z, in this order (its
`droid/misc/transformations.py`: SciPy's lower-case "xyz").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from mcr.data.index import Index
from mcr.errors import UserError, require_choice

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

_OBSERVED, _COMMANDED = "cartesian_position", "action_dict/cartesian_position"  # poses
_GRIPPER_POSITION, _GRIPPER_VELOCITY = (
    "action_dict/gripper_position",
    "action_dict/gripper_velocity",
)
ACTION_SPACES = {
    "default": ("action",),
    "cartesian_position": (_COMMANDED, _GRIPPER_POSITION),
    "cartesian_velocity": ("action_dict/cartesian_velocity", _GRIPPER_VELOCITY),
    "joint_position": ("action_dict/joint_position", _GRIPPER_POSITION),
    "joint_velocity": ("action_dict/joint_velocity", _GRIPPER_VELOCITY),
    "delta": (_OBSERVED, _COMMANDED, _GRIPPER_POSITION),  # from which it is computed
}
MOTION = "motion"
_POSE_SIZE = 6  # x, y, z and three Euler angles
_ROTATION_SIZES = {"euler": 3, "6d": 6}
ROTATIONS = tuple(_ROTATION_SIZES)
_NUM_COMPARED, _SAME = 256, 1e-4  # steps, metres and radians: is `action` the commanded pose?


@dataclass(frozen=True)
class Space:
    """What a recipe takes from the signals of a step.

    name:    says how it is computed; spaces of equal names give equal numbers
    columns: stored columns that it reads, int64 [C]
    size:    number of its dimensions, D
    compute: float32 [..., C] -> float32 [..., D]; None = as stored
    """

    name: str
    columns: np.ndarray
    size: int
    compute: Callable[[np.ndarray], np.ndarray] | None = None

    def read(self, signals: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return the numbers at `steps` (int64 [...]) of an index's `signals`: float32 [..., D]."""
        stored = signals[steps[..., None], self.columns]
        return self.compute(stored) if self.compute else stored


def signal_space(
    index: Index, keys: tuple[str, ...], rotation: str, wanted_by: str = "data.state_keys"
) -> Space:
    """Return the space of the named signals, with their rotations written as asked for.

    keys:      () = the state that the schema names
    wanted_by: the option that names them, for messages

    Raises UserError for a signal that the data set lacks, and for rotations outside of it.
    """
    require_choice("data.rotation", rotation, _ROTATION_SIZES)
    keys = keys or index.state
    columns, name = index.columns(keys, wanted_by), " + ".join(keys)
    begins = _angle_columns(index, keys) if rotation == "6d" else ()
    if not begins:
        return Space(name, columns, len(columns))
    size = len(columns) + len(begins) * (_ROTATION_SIZES["6d"] - 3)
    return Space(f"{name}, 6d", columns, size, partial(_with_6d, begins=begins))


def action_space(index: Index, name: str, rotation: str) -> Space:
    """Return the space `name`, which is a key of ACTION_SPACES or MOTION.

    It has no dimensions if the data set has no action and `name` is "default". Raises UserError for
    a signal that the data set lacks, and for rotations outside of it.
    """
    if name == MOTION:
        name = _motion(index)
    require_choice("data.action_space", name, (MOTION, *ACTION_SPACES))
    if name == "default" and not index.action:
        return Space("no action", np.arange(0), 0)
    keys = index.action if name == "default" else ACTION_SPACES[name]
    columns = index.columns(keys, f"data.action_space={name}")
    if name != "delta":
        return signal_space(index, keys, rotation, f"data.action_space={name}")
    require_choice("data.rotation", rotation, _ROTATION_SIZES)
    for key in (_OBSERVED, _COMMANDED):
        if not _is_euler_pose(index, key):
            raise UserError(
                f"{index.source}: data.action_space=delta needs {key} as xyz and three Euler "
                f"angles; its schema must say rotations: {{{key}: {{3: euler}}}}"
            )
    size = len(columns) - 2 * _POSE_SIZE + 3 + _ROTATION_SIZES[rotation]
    return Space(f"delta, {rotation}", columns, size, partial(_relative, rotation=rotation))


def _motion(index: Index) -> str:
    """Return which space MOTION stands for."""
    recorded = {*index.signal_names}
    if recorded.issuperset(ACTION_SPACES["cartesian_velocity"]):
        return "cartesian_velocity"
    if recorded.issuperset(ACTION_SPACES["delta"]) and all(
        _is_euler_pose(index, key) for key in (_OBSERVED, _COMMANDED)
    ):
        return "delta"
    return "default"


def _is_euler_pose(index: Index, key: str) -> bool:
    """Whether a signal is xyz and three Euler angles, as its schema says."""
    return index.schema.rotations.get(key) == {3: "euler"} and len(index.columns((key,))) == 6


def why_no_action(index: Index) -> str:
    """Say why a data set has no action, and how to name one in a schema."""
    signals = ", ".join(index.signal_names) or "none"
    if index.action:
        return (
            f"{index.source}: {' and '.join(index.action)} holds no numbers (its width is 0), so "
            f"there is no action; the signals are {signals}"
        )
    return f"{index.source}: no signal is called action; its signals are {signals}"


# --------------------------------------------------------------------------- which are rotations


def _angle_columns(index: Index, keys: tuple[str, ...]) -> tuple[int, ...]:
    """Return where three Euler angles begin in the concatenated signals.

    Raises UserError if the schema puts them beyond the end of a signal, or on a quaternion.
    """
    begins, position = [], 0
    for key in keys:
        width = len(index.columns((key,)))
        is_pose = key != "action" or _action_is_pose(index)
        for begin in sorted(index.schema.rotations.get(key, {})) if is_pose else ():
            if _is_quaternion(index, key, begin):
                raise UserError(
                    f"{index.source}: the schema says that {key} holds three Euler angles from "
                    f"number {begin} on, but the four numbers there are a quaternion; give a "
                    "schema with its own rotations, or use data.rotation=euler"
                )
            if begin + 3 > width:
                raise UserError(
                    f"{index.source}: the schema says that three angles begin at number {begin} of "
                    f"{key}, which has {width}; give a schema with its own rotations, or use "
                    "data.rotation=euler"
                )
            begins.append(position + begin)
        position += width
    return tuple(begins)


def _is_quaternion(index: Index, key: str, begin: int) -> bool:
    """Do the four numbers from `begin` on have length 1 at every one of some steps?"""
    columns = index.columns((key,))[begin : begin + 4]
    steps = np.linspace(0, index.info["total_steps"] - 1, _NUM_COMPARED).astype(np.int64)
    lengths = np.linalg.norm(index.signals[steps[:, None], columns], axis=1)
    return len(columns) == 4 and bool((np.abs(lengths - 1) < _SAME).all())


def _action_is_pose(index: Index) -> bool:
    """Compare numbers to tell whether `action` is the commanded pose, where that is recorded.

    DROID's schema does not say what `action` is, and other data sets in it hold velocities there.
    """
    if _COMMANDED not in index.info["columns"]:
        return True
    steps = np.linspace(0, index.info["total_steps"] - 1, _NUM_COMPARED).astype(np.int64)
    action = index.signals[steps[:, None], index.columns(("action",))]
    pose = index.signals[steps[:, None], index.columns((_COMMANDED,))]
    if pose.shape[1] != _POSE_SIZE or action.shape[1] < _POSE_SIZE:
        return False
    same = np.abs(action[:, :_POSE_SIZE] - pose).max(axis=1) < _SAME
    return bool(same.mean() > 0.9)


# --------------------------------------------------------------------------- computing


def _with_6d(stored: np.ndarray, begins: tuple[int, ...]) -> np.ndarray:
    """Turn the three Euler angles that begin at each of `begins` into 6-D. Keep the rest."""
    pieces, done = [], 0
    for begin in begins:
        angles = stored[..., begin : begin + 3]
        pieces += [stored[..., done:begin], _numbers(_rotations(angles), "6d", angles.shape)]
        done = begin + 3
    return np.concatenate([*pieces, stored[..., done:]], axis=-1)


def _relative(stored: np.ndarray, rotation: str) -> np.ndarray:
    """(observed pose, commanded pose, rest) -> (commanded pose relative to observed pose, rest)."""
    observed, commanded, rest = np.split(stored, [_POSE_SIZE, 2 * _POSE_SIZE], axis=-1)
    turn = _rotations(observed[..., 3:]).inv() * _rotations(commanded[..., 3:])
    return np.concatenate(
        [
            commanded[..., :3] - observed[..., :3],
            _numbers(turn, rotation, stored.shape),
            rest,
        ],
        axis=-1,
    )


def _rotations(angles: np.ndarray) -> Rotation:
    """Return the rotations of Euler angles [..., 3] as one flat sequence."""
    from scipy.spatial.transform import Rotation  # costs 0.5 s and 20 MB, so only if needed

    return Rotation.from_euler("xyz", angles.reshape(-1, 3))


def _numbers(rotations: Rotation, form: str, shape: tuple[int, ...]) -> np.ndarray:
    """Write a flat sequence of rotations as float32 [*shape[:-1], 3 or 6]."""
    if form == "euler":
        numbers = rotations.as_euler("xyz")
    else:
        numbers = rearrange(rotations.as_matrix()[:, :, :2], "n row column -> n (column row)")
    return numbers.astype(np.float32).reshape(*shape[:-1], _ROTATION_SIZES[form])
