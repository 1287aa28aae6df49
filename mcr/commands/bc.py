"""Train a policy by behaviour cloning on top of an encoder; Hydra reads the options."""

from __future__ import annotations

import sys

from mcr.policies.behaviour_cloning import main


def run(arguments: list[str]) -> None:
    sys.argv = ["mcr bc", *arguments]  # where Hydra looks for them
    main()
