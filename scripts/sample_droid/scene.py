"""The simulated world: a Panda at a table in robosuite's physics, commanded by poses.

robosuite provides the robot, its operational-space controller and the arena. The objects, their
appearance and the tasks are defined here. `expert.py` moves the robot and `photographer.py` renders
the pictures. It needs the packages of `scripts/requirements-sample-droid.txt`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import mujoco
import numpy as np
import robosuite
from robosuite.controllers import load_composite_controller_config
from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
from robosuite.models.arenas import TableArena
from robosuite.models.objects import Bin, BoxObject, CylinderObject
from robosuite.models.tasks import ManipulationTask
from sample_droid.look import COLOURS, TABLE_HEIGHT, Camera, Look, Thing
from scipy.spatial.transform import Rotation

CONTROL_HZ = 15  # DROID's rate
ROBOT_XY, TABLE_XY = (-0.56, 0.0), (-0.15, 0.0)
TABLE_SIZE = (1.2, 1.0, 0.05)
STIFFNESS = 300  # of the pose controller; with it the gripper moves at up to 0.65 m/s
FINGER_OPENING = 0.08  # metres between the fingers when open
RENDERED_HEIGHT, RENDERED_WIDTH = 360, 640  # the largest picture that the model can render
_TEXTURES = Path(robosuite.__file__).parent / "models" / "assets" / "textures"
_WRIST_CAMERA = Camera((0.09, 0.0, 0.03), (0.02, 0.0, 0.2), 75)  # sees the fingertips, as DROID's


class TabletopScene(ManipulationEnv):
    """One episode's world. Poses are position [3] in metres and rotation matrix [3, 3].

    things: the objects on the table; the robot is to move things[0]
    seed:   of the robot's initial joint positions
    """

    def __init__(self, task: str, things: tuple[Thing, ...], look: Look, seed: int):
        self.task, self.things, self.look = task, things, look
        controller = load_composite_controller_config(robot="Panda")
        controller["body_parts"]["right"] |= {"input_type": "absolute", "kp": STIFFNESS}
        super().__init__(
            robots="Panda",
            controller_configs=controller,
            base_types="NullMount",
            initialization_noise={"magnitude": 0.06, "type": "gaussian"},
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            control_freq=CONTROL_HZ,
            horizon=10_000,
            hard_reset=False,
            seed=seed,
        )

    # ----------------------------------------------------------------- built by robosuite

    def _load_model(self) -> None:
        super()._load_model()
        robot = self.robots[0].robot_model
        robot.set_base_xpos([*ROBOT_XY, TABLE_HEIGHT])  # on the table, as in DROID
        arena = TableArena(TABLE_SIZE, table_offset=(*TABLE_XY, TABLE_HEIGHT))
        arena.set_origin([0, 0, 0])
        self._objects = [_build(f"thing{i}", thing) for i, thing in enumerate(self.things)]
        self.model = ManipulationTask(arena, [robot], self._objects)

    def _setup_references(self) -> None:
        super()._setup_references()
        self._bodies = [self.sim.model.body_name2id(o.root_body) for o in self._objects]

    def _reset_internal(self) -> None:
        super()._reset_internal()
        for thing, body in zip(self.things, self._objects, strict=True):
            z = TABLE_HEIGHT - body.bottom_offset[2] + 0.001
            turn = [np.cos(thing.yaw / 2), 0, 0, np.sin(thing.yaw / 2)]
            self.sim.data.set_joint_qpos(body.joints[0], [*thing.xy, z, *turn])

    def edit_model_xml(self, xml_str: str) -> str:
        root = ElementTree.fromstring(super().edit_model_xml(xml_str))
        _apply_look(root, self.look)
        return ElementTree.tostring(root, encoding="unicode")

    def reward(self, action: np.ndarray | None = None) -> float:
        return float(self._check_success())

    # ----------------------------------------------------------------- state, in the world frame

    def thing_pose(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        body = self._bodies[index]
        data = self.sim.data
        return data.body_xpos[body].copy(), data.body_xmat[body].reshape(3, 3).copy()

    def gripper_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Pose of the point between the fingertips; z points out of the hand, y along the jaw."""
        site = self.robots[0].eef_site_id["right"]
        data = self.sim.data
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()

    def gripper_closure(self) -> float:
        """0 open .. 1 closed, as in DROID."""
        left, right = self.sim.data.qpos[self.robots[0]._ref_gripper_joint_pos_indexes["right"]]
        return float(np.clip(1 - (left - right) / FINGER_OPENING, 0, 1))

    def joint_positions(self) -> np.ndarray:
        return np.array(self.robots[0]._joint_positions)

    def gripper_jacobian(self) -> np.ndarray:
        """d(position, rotation vector) of the gripper / d(joint positions), [6, 7], base frame."""
        model, data = self.sim.model._model, self.sim.data._data
        jacobian = np.zeros((6, model.nv))
        site = self.robots[0].eef_site_id["right"]
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
        base = np.kron(np.eye(2), self.robots[0].base_ori.T)
        return base @ jacobian[:, self.robots[0]._ref_joint_vel_indexes]

    def to_base(self, position: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert a pose from the world frame to the frame of the robot's base."""
        robot = self.robots[0]
        return robot.base_ori.T @ (position - robot.base_pos), robot.base_ori.T @ rotation

    def command(self, position: np.ndarray, rotation: np.ndarray, gripper_velocity: float) -> None:
        """Move towards a pose in the base frame for one control step.

        gripper_velocity: negative opens, positive closes
        """
        rotation_vector = Rotation.from_matrix(rotation).as_rotvec()
        self.step(np.concatenate([position, rotation_vector, [np.sign(gripper_velocity)]]))

    def _check_success(self) -> bool:
        """Whether the instruction is fulfilled at this moment."""
        position, _ = self.thing_pose(0)
        held = self._check_grasp(self.robots[0].gripper["right"], self._objects[0])
        if self.task == "lift":
            bottom = position[2] - self.things[0].half_size[2]
            return bool(held and bottom > TABLE_HEIGHT + 0.04)
        goal, goal_rotation = self.thing_pose(1)
        offset = goal_rotation.T @ (position - goal)
        half, goal_half = self.things[0].half_size[2], np.array(self.things[1].half_size)
        if self.task == "stack":
            rests = abs(offset[2] - half - goal_half[2]) < 0.01
        else:
            rests = offset[2] - half < goal_half[2]
        return bool(not held and rests and (np.abs(offset[:2]) < goal_half[:2]).all())


def _build(name: str, thing: Thing) -> BoxObject | CylinderObject | Bin:
    rgba = [*COLOURS[thing.colour], 1.0]
    friction = [1.0, 0.005, 0.0001]
    if thing.shape == "can":
        radius, _, half_height = thing.half_size
        return CylinderObject(
            name, size=[radius, half_height], rgba=rgba, density=300, friction=friction
        )
    if thing.shape == "box":
        full_size = 2 * np.array(thing.half_size)
        return Bin(
            name,
            full_size,
            wall_thickness=0.006,
            transparent_walls=False,
            use_texture=False,
            rgba=rgba,
        )
    return BoxObject(name, size=thing.half_size, rgba=rgba, density=300, friction=friction)


def _apply_look(root: ElementTree.Element, look: Look) -> None:
    """Set textures, colours, light and cameras in robosuite's model."""
    (world,), (visual,) = root.findall("worldbody"), root.findall("visual")
    textures = {texture.get("name"): texture for texture in root.iter("texture")}
    materials = {material.get("name"): material for material in root.iter("material")}
    textures["tex-ceramic"].set("file", str(_TEXTURES / f"{look.table_texture}.png"))
    materials["table_ceramic"].set("rgba", _numbers(*look.table_tint, 1))
    textures["texplane"].set("file", str(_TEXTURES / f"{look.floor_texture}.png"))
    for name in ("floorplane", "table_legs_metal"):
        materials[name].set("reflectance", "0")
    materials["walls_mat"].attrib.pop("texture")
    materials["walls_mat"].set("rgba", _numbers(*look.wall_colour, 1))
    for light in world.findall("light"):
        world.remove(light)
    target = np.array([0, 0, TABLE_HEIGHT])
    ElementTree.SubElement(
        world,
        "light",
        pos=_numbers(*look.light_position),
        dir=_numbers(*(target - look.light_position)),
        diffuse=_numbers(*[look.light_strength] * 3),
        specular="0.2 0.2 0.2",
        directional="true",
        castshadow="true",
    )
    _set(visual, "headlight", ambient=_numbers(*[look.ambient] * 3), diffuse="0.2 0.2 0.2")
    _set(visual, "quality", shadowsize="4096", offsamples="0")
    _set(visual, "map", shadowclip="0.4")
    _set(visual, "global", offwidth=str(RENDERED_WIDTH), offheight=str(RENDERED_HEIGHT))
    for name, camera in zip(("exterior_1", "exterior_2"), look.cameras, strict=True):
        _place_camera(ElementTree.SubElement(world, "camera", name=name), camera, (0, 0, 1))
    (wrist,) = (c for c in root.iter("camera") if c.get("name") == "robot0_eye_in_hand")
    _place_camera(wrist, _WRIST_CAMERA, (1, 0, 0))


def _set(parent: ElementTree.Element, tag: str, **attributes: str) -> None:
    """Set attributes of the only child `tag`, which is added if there is none."""
    child = parent.find(tag)
    if child is None:
        child = ElementTree.SubElement(parent, tag)
    child.attrib.update(attributes)


def _place_camera(
    element: ElementTree.Element, camera: Camera, upward: tuple[float, float, float]
) -> None:
    """Aim a camera, in the frame of its body. MuJoCo's cameras face -z, and y points up."""
    backward = np.array(camera.position) - camera.target
    right = np.cross(upward, backward)
    element.attrib.pop("quat", None)
    element.set("pos", _numbers(*camera.position))
    element.set("xyaxes", _numbers(*right, *np.cross(backward, right)))
    element.set("fovy", _numbers(camera.fovy))


def _numbers(*values: float) -> str:
    return " ".join(f"{value:.6g}" for value in values)
