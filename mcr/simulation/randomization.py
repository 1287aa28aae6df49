"""Visual domain randomisation: cameras, light and colours of a scene are drawn from its seed.

`looks="varied"` of `PictureConfig` is all of it, `looks="recoloured"` leaves the cameras where they
are, and `looks="fixed"` changes nothing. In a scene that always looks the same, raw pixels tell a
policy all that it needs, and random features serve as well as learned ones. Real pictures differ
from lab to lab and from day to day. The robot, the task's objects and a camera on the hand do not
change. Importing this module imports mujoco.
"""

from __future__ import annotations

import mujoco
import numpy as np

# Standard deviations and ranges, similar to those between sessions of resources/sample_droid.
_CAMERA_M, _CAMERA_RAD = 0.06, 0.05  # standard deviation of position and direction
_LIGHT_M, _LIGHT_SHARE = 0.5, (0.5, 1.3)  # standard deviation of position; range of the strength
_TINT_SHARE = (0.6, 1.0)  # range of the factor on red, green and blue
_DRAWN = ("cam_pos", "cam_quat", "light_pos", "light_diffuse", "geom_rgba", "mat_rgba")


class VisualRandomization:
    """Changes a model's cameras, light and colours, relative to how they were at first.

    kept:  bool [model.ngeom], geometries that keep their colours, in addition to all that move
    looks: one of `simulator.LOOKS`
    """

    def __init__(self, model: mujoco.MjModel, kept: np.ndarray, looks: str):
        self._model, self._looks = model, looks
        self._usual = {name: getattr(model, name).copy() for name in _DRAWN}
        self._usual_headlight = {
            name: getattr(model.vis.headlight, name).copy() for name in ("ambient", "diffuse")
        }
        kept = kept | (model.body_weldid[model.geom_bodyid] != 0)
        self._geoms = np.flatnonzero(~kept)
        self._materials = np.setdiff1d(np.arange(model.nmat), model.geom_matid[kept])
        self._cameras = np.flatnonzero((model.cam_bodyid == 0) & (looks == "varied"))

    def draw(self, seed: int) -> None:
        """Set what this seed determines. The simulation must be reset afterwards."""
        if self._looks == "fixed":
            return
        rng = np.random.default_rng([seed, 1])  # independent of where the objects are placed
        self._draw_light(rng)
        for camera in self._cameras:
            self._draw_camera(camera, rng)
        for name, rows in (("geom_rgba", self._geoms), ("mat_rgba", self._materials)):
            tints = rng.uniform(*_TINT_SHARE, (len(rows), 3))
            getattr(self._model, name)[rows, :3] = self._usual[name][rows, :3] * tints

    def _draw_light(self, rng: np.random.Generator) -> None:
        strength, usual = rng.uniform(*_LIGHT_SHARE), self._usual
        self._model.light_pos[:] = rng.normal(usual["light_pos"], _LIGHT_M)
        self._model.light_diffuse[:] = usual["light_diffuse"] * strength
        for name, value in self._usual_headlight.items():
            getattr(self._model.vis.headlight, name)[:] = value * strength

    def _draw_camera(self, camera: np.intp, rng: np.random.Generator) -> None:
        place, turn = self._model.cam_pos[camera], np.zeros(4)
        place[:] = rng.normal(self._usual["cam_pos"][camera], _CAMERA_M)
        rotation = rng.normal(0, _CAMERA_RAD, 3)
        angle = np.linalg.norm(rotation)
        mujoco.mju_axisAngle2Quat(turn, rotation / angle, angle)
        mujoco.mju_mulQuat(self._model.cam_quat[camera], self._usual["cam_quat"][camera], turn)
