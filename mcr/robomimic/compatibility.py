"""Everything that is patched in robomimic and robosuite, and the versions that it works with.

1. `register` puts backbone classes where robomimic looks up their names.
2. `register` replaces robomimic's wrapper of robosuite by `simulator.RobosuiteSimulator`.
3. `mujoco_py_stand_in` lets robomimic 0.3.0 import that wrapper without mujoco_py.
4. `separate_renderers` lets several simulators of robosuite render in one process.

Other versions are refused, because a patch of code that it was not written for may fail silently.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

from mcr.errors import UserError, import_extra

ROBOMIMIC_VERSIONS = ("0.3.0", "0.5.0")  # the newest on PyPI, and that of its repository
ROBOSUITE_VERSIONS = ("1.5.1", "1.5.2")


def require_version(package: str, known: tuple[str, ...]) -> ModuleType:
    """Import a package of the extra `robomimic`. Raises UserError if it is absent or unknown."""
    module = import_extra(package, "robomimic")
    if module.__version__ not in known:
        raise UserError(
            f"{package} {module.__version__} is not one of those that this was made for "
            f"({', '.join(known)}): pip install {package}=={known[0]}"
        )
    return module


def register(*backbones: type, simulator: Callable[[], type]) -> None:
    """Make backbone classes known to robomimic by their names.

    simulator: returns the class of robosuite's simulators; called when a simulator is made

    robomimic evaluates a config's class name inside `obs_core`, so the classes are put there.
    Version 0.5 also looks into a registry, where its base class puts every subclass. robomimic has
    an R3MConv and an MVPConv of its own; after this call both names mean our classes.
    """
    from robomimic.models import base_nets, obs_core
    from robomimic.utils import env_utils

    for backbone in backbones:
        for module in (base_nets, obs_core):
            setattr(module, backbone.__name__, backbone)
    _robosuites[:] = [simulator]
    if env_utils.get_env_class is not _environment_class:
        _robomimics["get_env_class"] = env_utils.get_env_class
        env_utils.get_env_class = _environment_class


_robomimics: dict[str, Any] = {}  # robomimic's functions that were replaced
_robosuites: list[Callable[[], type]] = []  # the argument `simulator` of the latest `register`


def _environment_class(env_meta: Any = None, env_type: Any = None, env: Any = None) -> type:
    """robomimic's `get_env_class`, except for robosuite."""
    from robomimic.utils import env_utils

    if env_utils.is_robosuite_env(env_meta=env_meta, env_type=env_type, env=env):
        return _robosuites[0]()
    return _robomimics["get_env_class"](env_meta=env_meta, env_type=env_type, env=env)


@contextlib.contextmanager
def mujoco_py_stand_in() -> Iterator[None]:
    """Inside the block, `import mujoco_py` gives a module with the one name that robomimic needs.

    The robosuite wrapper of robomimic 0.3.0 catches mujoco_py's exception in rollouts. Today's
    robosuite runs on mujoco, so the stand-in's exception is mujoco's. The stand-in is removed from
    `sys.modules` at the end of the block.
    """
    if importlib.util.find_spec("mujoco_py"):
        yield
        return
    import mujoco

    stand_in = ModuleType("mujoco_py")
    stand_in.builder = SimpleNamespace(MujocoException=mujoco.FatalError)  # type: ignore[attr-defined]
    sys.modules["mujoco_py"] = stand_in
    try:
        yield
    finally:
        del sys.modules["mujoco_py"]


def separate_renderers() -> None:
    """Let each renderer of robosuite render, and free its memory, in its own OpenGL context.

    robosuite makes a context current only when it creates it. Without this patch, a simulator
    renders in the context of the newest one, and when Python frees a simulator, it frees textures
    and meshes of another, whose pictures are noise from then on. Policies then fail without any
    error. Calling this function twice is harmless.
    """
    from robosuite.utils.binding_utils import MjRenderContext

    if not hasattr(MjRenderContext.render, "__wrapped__"):
        for name in ("render", "read_pixels", "__del__"):
            method = getattr(MjRenderContext, name)
            setattr(MjRenderContext, name, _in_its_own_context(method))


def _in_its_own_context(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(renderer: Any, *args: Any, **kwargs: Any) -> Any:
        if sys.is_finalizing():  # OpenGL is closed already, and its memory is freed
            return None
        renderer.gl_ctx.make_current()
        return method(renderer, *args, **kwargs)

    return run
