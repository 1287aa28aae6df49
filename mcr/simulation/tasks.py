"""Simulated tasks that policies are tried on: MetaWorld's and robosuite's, behind one interface.

A simulator steps, renders and knows an expert; there is no learning here and no torch. Each suite
is an extra of its own, imported when a task of it is made. Called by `recorder`, `rollouts` and
`mcr evaluate`.
"""

from __future__ import annotations

import logging
import os
import sys

from mcr.errors import UserError, import_extra, nearest
from mcr.simulation.simulator import PictureConfig, Simulator

SUITES: dict[str, tuple[str, ...]] = {
    "metaworld": (  # the ten of MCR's paper
        "assembly",
        "bin-picking",
        "button-press",
        "disassemble",
        "drawer-open",
        "hammer",
        "pick-place-wall",
        "shelf-place",
        "stick-pull",
        "stick-push",
    ),
    "robosuite": ("lift", "stack", "can", "square"),
}
TASKS = tuple(f"{suite}/{name}" for suite, names in SUITES.items() for name in names)


def make_simulator(task: str, pictures: PictureConfig | None = None, horizon: int = 0) -> Simulator:
    """The simulator of a task like "metaworld/assembly".

    horizon: steps of a rollout; 0 = the task's
    raises: UserError for an unknown task or camera, a suite that is not installed, no OpenGL.
    """
    suite, name = split_task(task)
    if horizon < 0:
        raise UserError(f"horizon={horizon} must be positive, or 0 for the task's own")
    _import_mujoco(suite)
    # robosuite misses macros and robots, at every import, that it can do without.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    import_extra(suite, suite)
    pictures = pictures or PictureConfig()
    if suite == "metaworld":
        from mcr.simulation.metaworld import make_metaworld

        return make_metaworld(name, pictures, horizon)
    from mcr.simulation.robosuite import make_robosuite

    return make_robosuite(name, pictures, horizon)


def split_task(task: str) -> tuple[str, str]:
    """ "metaworld/assembly" -> ("metaworld", "assembly"); UserError with the nearest otherwise."""
    if task not in TASKS:
        raise UserError(f"task {task!r} is unknown{nearest(task, TASKS)}")
    suite, _, name = task.partition("/")
    return suite, name


def _import_mujoco(suite: str) -> None:
    """MuJoCo decides how to render when it is imported, and fails there without OpenGL."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa renders in the thread that asks
    try:
        import_extra("mujoco", suite)
        from mcr.simulation.rendering import open_gl

        open_gl()
    except UserError:
        raise
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise UserError(
            f"MuJoCo cannot render off-screen (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: "
            f"{error}); without a GPU, on Debian: apt-get install libegl1 libegl-mesa0 "
            "libgl1-mesa-dri; MUJOCO_GL counts when mujoco is first imported"
        ) from error
