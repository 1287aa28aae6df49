"""Pictures of a scene by three cameras, rendered off-screen by MuJoCo."""

from __future__ import annotations

import io

import mujoco
import numpy as np
from PIL import Image
from sample_droid.look import Style
from sample_droid.scene import RENDERED_WIDTH, TabletopScene
from sample_droid.schema import CAMERAS, HEIGHT, WIDTH

from mcr.simulation.rendering import look_through, open_gl

_IN_THE_SCENE = dict(zip(CAMERAS, ("exterior_1", "exterior_2", "robot0_eye_in_hand"), strict=True))


class Photographer:
    """Renders what three cameras see. Holds the scene's meshes on the GPU: use `with`."""

    def __init__(self, scene: TabletopScene, style: Style):
        open_gl().make_current()
        self._scene, self._style = scene, style
        self._model, self._data = scene.sim.model._model, scene.sim.data._data
        # Rendered at twice the size and averaged, edges are smooth on every OpenGL.
        scale = 1 if style.draft else RENDERED_WIDTH // WIDTH
        self._size = (scale * HEIGHT, scale * WIDTH)
        if style.draft:
            self._model.vis.quality.shadowsize = 0
        self._picture = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._picture)
        self._geometry = mujoco.MjvScene(self._model, maxgeom=1000)
        self._geometry.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = not style.draft
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = [0, 1, 0, 0, 0, 0]  # what is to be seen, not collision shapes
        self._options.sitegroup[:] = 0

    def __enter__(self) -> Photographer:
        return self

    def __exit__(self, *_: object) -> None:
        self._picture.free()

    def photograph(self, qpos: np.ndarray) -> dict[str, bytes]:
        """What the three cameras see, JPEG files of 320 x 180, with generalised positions qpos.

        Changes the state of the scene: photograph when the simulation is over.
        """
        self._scene.sim.data.qpos[:] = qpos
        self._scene.sim.forward()
        return {
            name: _encode(self._render(camera), self._style.quality)
            for name, camera in _IN_THE_SCENE.items()
        }

    def _render(self, name: str) -> np.ndarray:
        look_through(name, self._model, self._data, self._options, self._geometry)
        height, width = self._size
        large = np.empty((height, width, 3), np.uint8)
        frame = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(frame, self._geometry, self._picture)
        mujoco.mjr_readPixels(large, None, frame, self._picture)
        blocks = large[::-1].reshape(HEIGHT, -1, WIDTH, width // WIDTH, 3)
        return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)  # OpenGL's rows run upwards


def _encode(picture: np.ndarray, quality: int) -> bytes:
    """Baseline JPEG with DROID's chroma subsampling, 4:2:0; fitted Huffman tables save a tenth."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=2, optimize=True)
    return buffer.getvalue()
