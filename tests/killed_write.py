"""What a process leaves that is killed while it writes something."""

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, signal, sys
from pathlib import Path
from mcr.runs.atomic import atomic_path

with atomic_path(Path(sys.argv[1]), replace_folder=True) as partial:
    partial.mkdir()
    (partial / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_half(path: Path) -> Path:
    """Let a process begin to write the folder `path` and die; return what it leaves beside it."""
    before = {*path.parent.iterdir()}
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    (leftover,) = {*path.parent.iterdir()} - before
    assert (leftover / "half").exists()
    return leftover
