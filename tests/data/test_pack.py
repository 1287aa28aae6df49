"""A pack that is killed while it is made, and made again by the same command."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcr.data.index import open_index
from mcr.data.pack import find_pack, open_pack, pack_path
from tests.data.formats import record_episodes, write_hdf5

ROOT = Path(__file__).resolve().parents[2]
# Units of one episode, written slowly, so that a kill meets every stage.
PACK = """
import sys, time
import mcr.data.pack as pack
from mcr.data.index import open_index
pack._FRAMES_PER_UNIT = 1
whole = pack._encode
def slowly(frame, options):
    time.sleep(0.02)
    return whole(frame, options)
pack._encode = slowly
pack.open_pack(open_index(sys.argv[1]), workers=1)
"""


def start_packing(path: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", PACK, str(path)], env=environment)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("num_units", [0, 1, 4])
def test_a_killed_pack_is_continued_to_the_same_bytes(tmp_path, monkeypatch, num_units):
    """num_units: how many are finished when the process is killed."""
    monkeypatch.setattr("mcr.data.pack._FRAMES_PER_UNIT", 1)
    recorded = record_episodes()
    whole = open_index(write_hdf5(tmp_path / "whole", recorded))
    killed = open_index(write_hdf5(tmp_path / "killed", recorded))
    open_pack(whole, workers=1)

    process = start_packing(killed.source)
    deadline = time.monotonic() + 1800
    while (
        len(list(pack_path(killed).glob("?_*.npy"))) < num_units or not pack_path(killed).exists()
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert find_pack(killed) is None
    done = {path: path.stat().st_mtime_ns for path in pack_path(killed).glob("?_*.npy")}
    assert num_units <= len(done) < 8

    open_pack(killed, workers=1)
    assert contents(pack_path(killed)) == contents(pack_path(whole))
    assert {path: path.stat().st_mtime_ns for path in done} == done  # not packed again
