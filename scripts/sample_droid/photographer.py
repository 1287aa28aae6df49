"""Pictures of a scene from three cameras, rendered off-screen by MuJoCo."""

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
    """Renders three cameras. It holds the scene's meshes on the GPU, so use `with`."""

    def __init__(self, scene: TabletopScene, style: Style):
        open_gl().make_current()
        self._scene, self._style = scene, style
        self._model, self._data = scene.sim.model._model, scene.sim.data._data
        # Averaging a picture of twice the size smooths edges alike in every OpenGL.
        scale = 1 if style.draft else RENDERED_WIDTH // WIDTH
        self._size = (scale * HEIGHT, scale * WIDTH)
        if style.draft:
            self._model.vis.quality.shadowsize = 0
        self._picture = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._picture)
        self._geometry = mujoco.MjvScene(self._model, maxgeom=1000)
        self._geometry.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = not style.draft
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = [0, 1, 0, 0, 0, 0]  # visual geometries, not collision ones
        self._options.sitegroup[:] = 0

    def __enter__(self) -> Photographer:
        return self

    def __exit__(self, *_: object) -> None:
        self._picture.free()

    def photograph(self, qpos: np.ndarray) -> dict[str, bytes]:
        """camera -> JPEG file of 320 x 180, of the scene with generalised positions `qpos`.

        This changes the state of the scene, so call it when the simulation is over.
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
        # OpenGL's first row is the lowest
        blocks = large[::-1].reshape(HEIGHT, -1, WIDTH, width // WIDTH, 3)
        return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def _encode(picture: np.ndarray, quality: int) -> bytes:
    """Encode a baseline JPEG with DROID's chroma subsampling, 4:2:0.

    Optimised Huffman tables save a tenth of the size.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=2, optimize=True)
    return buffer.getvalue()
