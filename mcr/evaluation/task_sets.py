"""Development and sealed tasks: where recipes are chosen, and where they are reported.

A recipe that is chosen on a task looks better on it than it is. So choices are made by the offline
suite and on Lift alone, and the sealed tasks are run once for each recipe, at the end. The column
"set" of results.csv says which set a row is of. Called by `success_rates` and `offline`.

Demonstrations and horizons of the sealed tasks were set before any encoder of ours was tried on
them, by benchmarks/calibrate_tasks.py; resources/calibration.csv is what it measured. A task is
usable if policies that see the true state reach 70% and those that see proprioception alone at most
50%. On some usable tasks policies on pictures fail nevertheless, with any encoder. They are not run
for success rates: `DEMONSTRATED` tasks are judged by what features tell of held-out demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass

DEVELOPMENT = "development"
SEALED = "sealed"


@dataclass(frozen=True)
class TaskSetting:
    """What a task of a set has of its own.

    demonstrations: number of demonstrations that policies learn from
    horizon:        steps of a rollout; 0 = the task's own
    """

    demonstrations: int = 25
    horizon: int = 0


# All with varied looks.
TASK_SETS: dict[str, dict[str, TaskSetting]] = {
    DEVELOPMENT: {"robosuite/lift": TaskSetting()},
    SEALED: {
        "metaworld/button-press": TaskSetting(50, horizon=200),
        "metaworld/drawer-open": TaskSetting(50, horizon=200),
        "metaworld/hammer": TaskSetting(50, horizon=200),
        "robosuite/can": TaskSetting(50),
    },
}
# Sealed too. Policies on pictures fail at them, see resources/evaluation.md.
DEMONSTRATED = (
    "metaworld/assembly",
    "metaworld/bin-picking",
    "metaworld/disassemble",
    "metaworld/pick-place-wall",
    "metaworld/shelf-place",
)
# Too hard with 50 demonstrations, or not calibrated yet. They count as sealed, so that no choice is
# made on them before they may join a set.
_HELD_BACK = ("robosuite/stack", "robosuite/square", "metaworld/stick-pull")


def set_of_task(task: str, looks: str) -> str:
    """Return the set of a simulated task, such as "robosuite/lift"; "" if it is of neither.

    looks: "fixed" or "varied". Both sets are of varied looks, but a sealed task counts as sealed
           with fixed ones too, because a choice that was made on it would break the seal.
    """
    if task in (*TASK_SETS[SEALED], *DEMONSTRATED, *_HELD_BACK):
        return SEALED
    return DEVELOPMENT if task in TASK_SETS[DEVELOPMENT] and looks == "varied" else ""
