"""All that is changed in robomimic and robosuite, and the versions for which that is known to work.

1. `register` puts backbone classes where robomimic looks for their names.
2. robomimic's simulator of the robosuite kind becomes `simulator.RobosuiteSimulator`, a subclass.
3. `mujoco_py_stand_in` lets robomimic 0.3.0 import its robosuite wrapper without mujoco_py.
4. `separate_renderers` keeps robosuite's simulators of one process out of each other's pictures.

Other versions are refused: a patch that meets code it was not written for does silent harm.
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
    """Import what the extra `robomimic` brings. UserError if it is absent or another version."""
    module = import_extra(package, "robomimic")
    if module.__version__ not in known:
        raise UserError(
            f"{package} {module.__version__} is not one of those that this was made for "
            f"({', '.join(known)}): pip install {package}=={known[0]}"
        )
    return module


def register(*backbones: type, simulator: Callable[[], type]) -> None:
    """Make the classes known to robomimic by their names.

    simulator: gives the class for robosuite's simulators, and is called when one is made

    robomimic evaluates the name that a config gives inside `obs_core`, so it must stand there;
    0.5 also asks its registry, into which its own base class puts every subclass. Names that
    robomimic has itself, R3MConv and MVPConv, mean ours from here on, in `base_nets` too.
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


_robomimics: dict[str, Any] = {}  # what was replaced
_robosuites: list[Callable[[], type]] = []  # what gives the class of robosuite's simulators


def _environment_class(env_meta: Any = None, env_type: Any = None, env: Any = None) -> type:
    """robomimic's `get_env_class` for all kinds of simulators but robosuite."""
    from robomimic.utils import env_utils

    if env_utils.is_robosuite_env(env_meta=env_meta, env_type=env_type, env=env):
        return _robosuites[0]()
    return _robomimics["get_env_class"](env_meta=env_meta, env_type=env_type, env=env)


@contextlib.contextmanager
def mujoco_py_stand_in() -> Iterator[None]:
    """Inside, `import mujoco_py` yields the one name that robomimic 0.3.0 wants of it.

    Its robosuite wrapper catches mujoco_py's exception in rollouts. Today's robosuite runs on
    mujoco, whose exception takes that place. Nothing stays in `sys.modules`.
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
    """Let each of robosuite's renderers work, and be freed, in its own OpenGL context.

    robosuite makes a context current once, when it creates it. A second simulator of the process
    then renders in the wrong one, and the first, when Python frees it, frees textures and meshes of
    the second, whose pictures are noise from then on: a silent 0% in a rollout. Harmless twice.
    """
    from robosuite.utils.binding_utils import MjRenderContext

    if not hasattr(MjRenderContext.render, "__wrapped__"):
        for name in ("render", "read_pixels", "__del__"):
            method = getattr(MjRenderContext, name)
            setattr(MjRenderContext, name, _in_its_own_context(method))


def _in_its_own_context(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(renderer: Any, *args: Any, **kwargs: Any) -> Any:
        if sys.is_finalizing():  # OpenGL is closed already and takes everything with it
            return None
        renderer.gl_ctx.make_current()
        return method(renderer, *args, **kwargs)

    return run
