"""The training program, one process of which kills itself with SIGKILL when a given step begins.

    python -m tests.training.killed_run STEP RANK key=value ...

Run by the tests of interrupted training. A kill from outside could come too late on a machine that
trains faster, or while the process that kills has to wait for its turn.
"""

import os
import signal
import sys

from mcr.training import train as program


def kill_at(step: int) -> None:
    """Make this process kill itself when its training begins `step`."""
    seed_draws = program.seed_draws

    def seed_draws_or_die(seed: int, current: int) -> None:
        if current == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seed_draws(seed, current)

    program.seed_draws = seed_draws_or_die


if __name__ == "__main__":
    step, rank = int(sys.argv.pop(1)), sys.argv.pop(1)
    first_time = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first_time and os.environ.get("RANK", "0") == rank:
        kill_at(step)
    program.main()
