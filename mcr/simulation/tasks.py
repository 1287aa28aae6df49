"""Simulated tasks of MetaWorld and robosuite, behind the interface `Simulator`.

There is no learning here and no torch. Each suite is an extra, which is imported when one of its
tasks is made. Called by `recorder`, `rollouts` and `evaluation.success_rates`.
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
    raises: UserError for an unknown task or camera, a missing suite, or missing OpenGL
    """
    suite, name = split_task(task)
    if horizon < 0:
        raise UserError(f"horizon={horizon} must be positive, or 0 for the task's own")
    import_mujoco(suite)
    # robosuite warns at every import about optional macros and robots that are missing.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    import_extra(suite, suite)
    pictures = pictures or PictureConfig()
    if suite == "metaworld":
        from mcr.simulation.metaworld import make_metaworld

        return make_metaworld(name, pictures, horizon)
    from mcr.simulation.robosuite import make_robosuite

    return make_robosuite(name, pictures, horizon)


def split_task(task: str) -> tuple[str, str]:
    """ "metaworld/assembly" -> ("metaworld", "assembly"). Raises UserError for an unknown task."""
    if task not in TASKS:
        raise UserError(f"task {task!r} is unknown{nearest(task, TASKS)}")
    suite, _, name = task.partition("/")
    return suite, name


def import_mujoco(extra: str) -> None:
    """Import MuJoCo, which chooses its renderer on import, and open OpenGL.

    Raises UserError if MuJoCo, which `extra` brings, is missing or cannot render.
    """
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa then renders in the calling thread
    try:
        import_extra("mujoco", extra)
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
