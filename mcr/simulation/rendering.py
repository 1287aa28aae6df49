"""Pictures and exact masks of a MuJoCo scene, rendered off-screen without costly effects.

Shadows, reflections and multisampling are off: on a CPU they cost up to ten times as much as all
the rest. Both suites' simulators use this instead of their own renderers, which cannot share a
process. scripts/sample_droid uses the OpenGL context and the cameras. Importing this module imports
mujoco.
"""

from __future__ import annotations

import atexit
import functools

import mujoco
import numpy as np

from mcr.errors import UserError, nearest

_COSTLY = [int(mujoco.mjtRndFlag.mjRND_SHADOW), int(mujoco.mjtRndFlag.mjRND_REFLECTION)]
_NUMBERED = [int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR)]


@functools.cache
def open_gl() -> mujoco.GLContext:
    """The only OpenGL context of this process, since Mesa does not free all memory of a context.

    raises: ImportError, AttributeError or RuntimeError if OpenGL is missing
    """
    mujoco.GLContext._context = None  # the destructor reads it even if the constructor failed
    context = mujoco.GLContext(1, 1)
    context.make_current()
    atexit.register(context.free)  # before EGL is unloaded
    try:
        mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 100).free()
    except mujoco.FatalError as error:  # MuJoCo was told to use a display, but there is none
        raise RuntimeError(str(error)) from error
    return context


class Renderer:
    """Renders the state `data` through the model's cameras.

    size:   height and width of pictures in pixels; 0 = there will be none
    groups: the groups of geometries that are visible
    sites:  whether sites are visible; some tasks mark their goal with one
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        size: int,
        groups: tuple[int, ...],
        sites: bool,
    ):
        size = max(1, size)  # OpenGL wants a pixel, even if no picture will be taken
        self._model, self._data, self._size = model, data, size
        model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        open_gl().make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._scene.flags[_COSTLY] = False
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = [group in groups for group in range(6)]
        self._groups_of_sites = self._options.sitegroup.copy() * sites

    def picture(self, camera: str) -> np.ndarray:
        """uint8 [size, size, 3], RGB, upright."""
        self._options.sitegroup[:] = self._groups_of_sites
        return self._render(camera)

    def mask(self, camera: str, geoms: np.ndarray) -> np.ndarray:
        """The pixels of chosen geometries, bool [size, size].

        geoms: bool [model.ngeom], which geometries are chosen
        Sites are invisible here, because the marker of a goal may overlap objects.
        """
        self._options.sitegroup[:] = 0
        self._scene.flags[_NUMBERED] = True
        colours = self._render(camera).astype(np.int32)
        self._scene.flags[_NUMBERED] = False
        numbers = colours[..., 0] + (colours[..., 1] << 8) + (colours[..., 2] << 16)
        wanted = np.zeros(self._scene.ngeom + 1, bool)  # number 0 is the background
        for shape in self._scene.geoms[: self._scene.ngeom]:
            if shape.objtype == mujoco.mjtObj.mjOBJ_GEOM and shape.segid >= 0:
                wanted[shape.segid + 1] = geoms[shape.objid]
        return wanted[numbers]

    def _render(self, name: str) -> np.ndarray:
        look_through(name, self._model, self._data, self._options, self._scene)
        open_gl().make_current()  # another library may have made its own context current
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        frame = mujoco.MjrRect(0, 0, self._size, self._size)
        mujoco.mjr_render(frame, self._scene, self._context)
        pixels = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, frame, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        open_gl().make_current()
        self._context.free()


def look_through(
    name: str,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    options: mujoco.MjvOption,
    scene: mujoco.MjvScene,
) -> None:
    """Fill `scene` with what the model's camera `name` sees."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = model.camera(name).id
    mujoco.mjv_updateScene(model, data, options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)


def require_cameras(model: mujoco.MjModel, cameras: tuple[str, ...]) -> None:
    """Raise UserError, with the nearest name, for a camera that the model lacks."""
    known = [model.camera(number).name for number in range(model.ncam)]
    for camera in cameras:
        if camera not in known:
            raise UserError(f"camera {camera!r} is unknown{nearest(camera, known)}")


def geoms_below(model: mujoco.MjModel, bodies: set[int]) -> np.ndarray:
    """Which geometries belong to these bodies or to bodies attached to them, bool [model.ngeom]."""
    inside = np.zeros(model.nbody, bool)
    for body in range(model.nbody):  # a parent comes before its children
        inside[body] = body in bodies or inside[model.body_parentid[body]]
    return inside[model.geom_bodyid]
