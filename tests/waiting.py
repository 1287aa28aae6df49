"""How tests wait for other processes: for what they do, and never for a time.

A slow or busy machine must not fail a test. `PATIENCE_S` only ends a test that would hang for ever;
no test is expected to come near it.
"""

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 800  # less than the limit of a test in pyproject.toml
Found = TypeVar("Found")


def wait_for(look: Callable[[], Found], process: subprocess.Popen) -> Found:
    """What `look` finds as soon as it finds anything; until then the process must be running."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"nothing happened in {PATIENCE_S} seconds"
        time.sleep(0.005)
    return found
