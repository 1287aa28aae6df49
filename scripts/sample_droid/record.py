"""Records one planned episode: simulates it, renders pictures, and serializes it as DROID does.

The signals mean what they mean in DROID's robot code, where a command is a small step ahead:
- observation: `cartesian_position` is the point between the fingertips, xyz in metres and extrinsic
  xyz Euler angles in radians, in the frame of the robot's base (the angles wrap at +-pi);
  `gripper_position` 0 open .. 1 closed; `joint_position` in radians.
- action_dict: `cartesian_position` is exactly the controller's target pose;
  `cartesian_velocity` is the step from the observed to that pose, over the 0.075 m and 0.15 rad
  that DROID allows per step, hence within -1..1; `joint_velocity` is the same step in joint space,
  by damped least squares over the gripper's Jacobian, over 0.2 rad; `joint_position` is where it
  leads; `gripper_velocity` is -1 opening .. 1 closing (robosuite's gripper takes no position);
  `gripper_position` is where it leads at DROID's 0.25 per step, within 0..1.
- action is `action_dict/cartesian_position` followed by `action_dict/gripper_position`.
- reward is 1 in the last step of a success, else 0; discount 1; `is_terminal` equals `is_last`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sample_droid import language, schema
from sample_droid.expert import MAX_ROTATION, MAX_TRANSLATION, Command, Expert
from sample_droid.look import Style, draw_look, draw_things
from sample_droid.photographer import Photographer
from sample_droid.plan import EpisodePlan
from sample_droid.scene import TabletopScene
from scipy.spatial.transform import Rotation

from mcr.data.tf_example import encode_example

MAX_ATTEMPTS = 8
MAX_JOINT_STEP, MAX_GRIPPER_STEP = 0.2, 0.25  # DROID's, radians and share of the opening
_PREFIX = "gs://xembodiment_data/r2d2/r2d2-data-full"


@dataclass(frozen=True)
class EpisodeRecord:
    """A serialized episode; `attempts` is the number of simulations that it took."""

    payload: bytes
    success: bool
    frames: int
    attempts: int


@dataclass
class _Trajectory:
    """What happened: for each step, every signal and the simulator's state, to render it later."""

    signals: dict[str, list[np.ndarray]]
    qpos: list[np.ndarray]
    success: bool


def record_episode(plan: EpisodePlan, style: Style) -> EpisodeRecord:
    """Simulate the plan until it ends as planned; a pure function of its arguments.

    An expert that fails by accident, or succeeds in spite of its mistake, tries again with other
    objects. The last of `MAX_ATTEMPTS` is recorded however it ends.
    """
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([plan.seed, 2, plan.number, attempt])
        scene = _build_scene(plan, rng)
        try:
            mistake = str(rng.choice(["miss", "drop"])) if plan.oddity == "failure" else ""
            trajectory = _simulate(scene, Expert(scene, rng, mistake))
            if trajectory.success != bool(mistake) or attempt == MAX_ATTEMPTS - 1:
                return _finish(plan, scene, trajectory, rng, style, attempt + 1)
        finally:
            scene.close()
    raise AssertionError("the last attempt is always recorded")


def _build_scene(plan: EpisodePlan, rng: np.random.Generator) -> TabletopScene:
    look = draw_look(
        np.random.default_rng([plan.seed, 2, *plan.lab.encode()]),
        np.random.default_rng([plan.seed, 1, plan.session]),
        rng,
    )
    scene = TabletopScene(plan.task, draw_things(plan.task, rng), look, int(rng.integers(2**31)))
    scene.reset()
    return scene


def _simulate(scene: TabletopScene, expert: Expert) -> _Trajectory:
    signals: dict[str, list[np.ndarray]] = {}
    qpos = []
    for command in expert.commands():
        qpos.append(scene.sim.data.qpos.copy())
        for name, value in _describe(scene, command).items():
            signals.setdefault(name, []).append(value)
        position, rotation = scene.to_base(command.position, command.rotation)
        scene.command(position, rotation, command.gripper_velocity)
    return _Trajectory(signals, qpos, scene._check_success())


def _describe(scene: TabletopScene, command: Command) -> dict[str, np.ndarray]:
    """The observation and the command of this instant in DROID's terms."""
    position, rotation = scene.to_base(*scene.gripper_pose())
    goal_position, goal_rotation = scene.to_base(command.position, command.rotation)
    turn = Rotation.from_matrix(goal_rotation @ rotation.T).as_rotvec()
    step = np.concatenate([goal_position - position, turn])
    joints, closure = scene.joint_positions(), scene.gripper_closure()
    joint_step = _joint_step(scene.gripper_jacobian(), step)
    goal_closure = np.clip(closure + MAX_GRIPPER_STEP * command.gripper_velocity, 0, 1)
    commanded = {
        "cartesian_position": _pose_vector(goal_position, goal_rotation),
        "cartesian_velocity": step / np.repeat([MAX_TRANSLATION, MAX_ROTATION], 3),
        "gripper_position": np.array([goal_closure]),
        "gripper_velocity": np.array([command.gripper_velocity]),
        "joint_position": joints + joint_step,
        "joint_velocity": joint_step / MAX_JOINT_STEP,
    }
    return {
        "observation/cartesian_position": _pose_vector(position, rotation),
        "observation/gripper_position": np.array([closure]),
        "observation/joint_position": joints,
        "action": np.append(commanded["cartesian_position"], goal_closure),
        **{f"action_dict/{name}": value for name, value in commanded.items()},
    }


def _pose_vector(position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    return np.concatenate([position, Rotation.from_matrix(rotation).as_euler("xyz")])


def _joint_step(jacobian: np.ndarray, step: np.ndarray, damping: float = 0.05) -> np.ndarray:
    """The joint motion [7] for a Cartesian step [6], limited to DROID's largest step."""
    regular = jacobian @ jacobian.T + damping**2 * np.eye(6)
    joint_step = jacobian.T @ np.linalg.solve(regular, step)
    return joint_step / max(1.0, np.abs(joint_step).max() / MAX_JOINT_STEP)


def _finish(
    plan: EpisodePlan,
    scene: TabletopScene,
    trajectory: _Trajectory,
    rng: np.random.Generator,
    style: Style,
    attempts: int,
) -> EpisodeRecord:
    start = 0
    if plan.oddity == "short":
        start = max(0, len(trajectory.qpos) - int(rng.integers(10, 31)))
    count = len(trajectory.qpos) - start
    names = [(thing.colour, thing.shape) for thing in scene.things]
    spoken = language.instructions(plan.task, names, plan.oddity, rng)
    features: dict[str, list[bytes] | np.ndarray] = {
        f"steps/{name}": np.stack(rows[start:]) for name, rows in trajectory.signals.items()
    }
    features |= _step_flags(count, trajectory.success)
    for field, text in zip(schema.LANGUAGES, spoken, strict=True):
        features[f"steps/{field}"] = [text.encode()] * count
    features |= _photograph(scene, trajectory.qpos[start:], style)
    folder = f"{_PREFIX}/{plan.lab}/{'success' if trajectory.success else 'failure'}/{plan.folder}"
    features["episode_metadata/file_path"] = [f"{folder}/trajectory.h5".encode()]
    features["episode_metadata/recording_folderpath"] = [f"{folder}/recordings/MP4".encode()]
    payload = encode_example(features)
    return EpisodeRecord(payload, trajectory.success, count, attempts)


def _step_flags(count: int, success: bool) -> dict[str, list[bytes] | np.ndarray]:
    steps = np.arange(count)
    is_last = steps == count - 1
    return {
        "steps/is_first": steps == 0,
        "steps/is_last": is_last,
        "steps/is_terminal": is_last,
        "steps/reward": (is_last & success).astype(np.float32),
        "steps/discount": np.ones(count, np.float32),
    }


def _photograph(
    scene: TabletopScene, states: list[np.ndarray], style: Style
) -> dict[str, list[bytes] | np.ndarray]:
    pictures: dict[str, list[bytes]] = {camera: [] for camera in schema.CAMERAS}
    with Photographer(scene, style) as photographer:
        for qpos in states:
            for camera, picture in photographer.photograph(qpos).items():
                pictures[camera].append(picture)
    return {f"steps/observation/{camera}": encoded for camera, encoded in pictures.items()}
