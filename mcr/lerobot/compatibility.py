"""What is patched in LeRobot, and the versions that it works with.

Policies need no patch: LeRobot finds those that are registered with it, from version 0.4.3 on. Its
trainer makes its data set by `make_dataset`, for which it has no registry. `replace_make_dataset`
puts ours in that place; it only acts for a policy of ours that asks for cached features.

Other versions are refused, because a subclass of code that it was not written for may fail
silently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from mcr.errors import UserError, import_extra

LEROBOT_VERSIONS = ("0.4.4", "0.4.3")

_TRAINERS = ("lerobot.datasets.factory", "lerobot.scripts.lerobot_train", "__main__")


def require_lerobot() -> None:
    """Raise UserError if the extra `lerobot-policies` is not installed or LeRobot is another."""
    import_extra("lerobot", "lerobot-policies")
    from lerobot.__version__ import __version__

    if __version__ not in LEROBOT_VERSIONS:
        raise UserError(
            f"lerobot {__version__} is not one of those that this was made for "
            f"({', '.join(LEROBOT_VERSIONS)}): pip install lerobot=={LEROBOT_VERSIONS[0]}"
        )


def replace_make_dataset(ours: Callable[[Any], Any]) -> None:
    """Let LeRobot's trainer call `ours` instead of LeRobot's `make_dataset`.

    The trainer may be imported already, under its name or as the main program.
    """
    from lerobot.datasets import factory

    theirs = factory.make_dataset
    for name in _TRAINERS:
        module = sys.modules.get(name)
        if getattr(module, "make_dataset", None) is theirs:
            setattr(module, "make_dataset", ours)  # noqa: B010  a module has no such attribute
