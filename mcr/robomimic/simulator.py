"""robomimic's simulator of robosuite, with two more options for a data set's `env_kwargs`.

robomimic makes it from a data set's metadata, to try policies. `demonstrations` makes it to record
a data set. Importing this module imports robosuite and makes it render off-screen.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from mcr.robomimic.cached_features import OnlineFeatures
from mcr.robomimic.compatibility import (
    ROBOSUITE_VERSIONS,
    mujoco_py_stand_in,
    require_version,
    separate_renderers,
)

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before robosuite is imported
_ROBOSUITE = require_version("robosuite", ROBOSUITE_VERSIONS).__version__
import mujoco  # noqa: E402

with mujoco_py_stand_in():
    from robomimic.envs.env_robosuite import EnvRobosuite
separate_renderers()


class RobosuiteSimulator(EnvRobosuite):
    """robomimic's EnvRobosuite.

    light_rendering: render no shadows and reflections, which is 3.5 times faster on a CPU. Pictures
        differ, so the data set says it.
    features: compute an encoder's features of some pictures, for policies trained on cached
        features: {"weights", "fingerprint", "keys"}, as `cached_features.write_features` puts it
        into the data set.
    """

    def __init__(
        self,
        env_name: str,
        light_rendering: bool = False,
        features: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self._light_rendering = light_rendering
        self._features = OnlineFeatures(**features) if features else None
        if features:  # the policy takes no pictures, so robomimic would not render any
            kwargs["use_image_obs"] = True
        if _ROBOSUITE == "1.5.2" and "seed" not in kwargs:
            # 1.5.1 uses NumPy's global generator, which robomimic seeds. 1.5.2 has its own.
            kwargs["seed"] = int(np.random.randint(2**31))
        super().__init__(env_name, **kwargs)
        self._init_kwargs |= {"light_rendering": light_rendering, "features": features}

    def reset(self) -> dict[str, np.ndarray]:
        self.env.reset()
        return self.get_observation()  # again, because the renderer may be new

    def get_observation(self, di: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """robomimic's observation with features. di: robosuite's; None = observe now."""
        if di is None:
            self._set_rendering()
            di = self.env._get_observations(force_update=True)
        observation = super().get_observation(di)
        if self._features:
            # robosuite's pictures are upside down.
            pictures = {key: di[key][::-1] for key in self._features.keys}
            observation |= self._features(pictures)
        return observation

    def _set_rendering(self) -> None:
        context = self.env.sim._render_context_offscreen
        if self._light_rendering and context is not None:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                context.scn.flags[flag] = 0
