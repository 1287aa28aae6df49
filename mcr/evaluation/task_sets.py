"""Development and sealed tasks: where recipes are chosen, and where they are reported.

A recipe that is chosen on a task looks better on it than it is. So choices are made by the offline
suite and on Lift alone, and the sealed tasks are run once for each recipe, at the end. The column
"set" of results.csv says which set a row is of. Called by `success_rates` and `offline`.
"""

from __future__ import annotations

DEVELOPMENT = "development"
SEALED = "sealed"

_DEVELOPMENT_TASKS = ("robosuite/lift",)  # with varied looks
_SEALED_TASKS = (
    "robosuite/stack",
    "robosuite/can",
    "robosuite/square",
    "metaworld/assembly",
    "metaworld/shelf-place",
    "metaworld/pick-place-wall",
)


def set_of_task(task: str, looks: str) -> str:
    """Return the set of a simulated task, such as "robosuite/lift"; "" if it is of neither.

    looks: "fixed" or "varied". Both sets are of varied looks, but a sealed task counts as sealed
           with fixed ones too, because a choice that was made on it would break the seal.
    """
    if task in _SEALED_TASKS:
        return SEALED
    return DEVELOPMENT if task in _DEVELOPMENT_TASKS and looks == "varied" else ""
