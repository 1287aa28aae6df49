"""SIGTERM and Ctrl-C: no process stays behind, and nothing is printed but one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "mcr.cli", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(process: subprocess.Popen) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def test_sigterm_to_cleaning_leaves_no_process(tree, tmp_path):
    cleaning = start("clean", tree, "--quarantine", tmp_path / "rejected", "--workers", 2)
    workers = wait_for(lambda: children(cleaning), cleaning)
    cleaning.terminate()
    cleaning.communicate(timeout=PATIENCE_S)  # ends when no process holds its output any more
    assert cleaning.returncode == -signal.SIGTERM
    assert not any(Path(f"/proc/{worker}/exe").exists() for worker in workers)


@pytest.mark.parametrize("command", [["features", "a", "b", "c"], ["train", "data.root=a"]])
def test_ctrl_c_while_torch_is_imported(command):
    process = start(*command)
    wait_for(lambda: "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout, stderr) == (2, "", "error: interrupted\n")
