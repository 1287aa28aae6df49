"""What needs no installed simulator: refusals, names, the split of demonstrations."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from mcr.errors import UserError
from mcr.simulation.recorder import record_demonstrations, write_split
from mcr.simulation.rollouts import run_rollouts
from mcr.simulation.simulator import PictureConfig
from mcr.simulation.tasks import SUITES, TASKS, make_simulator, split_task


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        ("metaworld/asembly", "did you mean 'metaworld/assembly'"),
        ("robosuite/lft", "did you mean 'robosuite/lift'"),
        ("assembly", "did you mean 'metaworld/assembly'"),
        ("x", "choose from: metaworld/assembly, "),
    ],
)
def test_unknown_task(task, complaint, tmp_path):
    with pytest.raises(UserError, match=f"task '{task}' is unknown; {complaint}"):
        make_simulator(task)
    with pytest.raises(UserError, match=complaint):
        record_demonstrations(task, tmp_path / "new" / "x.hdf5")
    assert not (tmp_path / "new").exists()


def test_names():
    assert len(SUITES["metaworld"]) == 10 and len(TASKS) == 14
    assert split_task("robosuite/can") == ("robosuite", "can")


@pytest.mark.parametrize("suite", SUITES)
def test_a_missing_simulator_names_the_extra(suite, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=rf"mujoco, .* pip install 'mcr\[{suite}\]'"):
        make_simulator(f"{suite}/{SUITES[suite][0]}")


@pytest.mark.parametrize(
    ("pictures", "horizon", "complaint"),
    [
        ({"picture_size": -1}, 0, "picture_size=-1 must"),
        ({"looks": "vared"}, 0, "looks=.vared. is unknown; did you mean .varied."),
        ({}, -1, "horizon=-1 must"),
    ],
)
def test_invalid_picture_settings_are_refused(pictures, horizon, complaint):
    with pytest.raises(UserError, match=complaint):
        make_simulator("robosuite/lift", PictureConfig(**pictures), horizon)


def test_existing_recording_is_not_overwritten(tmp_path):
    path = tmp_path / "lift.hdf5"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="exists: give another name"):
        record_demonstrations("robosuite/lift", path)
    with pytest.raises(UserError, match="count=0"):
        record_demonstrations("robosuite/lift", tmp_path / "other.hdf5", count=0)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("number", "held_out"), [(3, [2]), (10, [9]), (25, [9, 19]), (1, [0]), (2, [1])]
)
def test_split(number, held_out, tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        write_split(file, number)
        assert list(file["mask/valid"]) == [b"demo_%d" % i for i in held_out]
        assert len(file["mask/train"]) == number - len(held_out)


def test_no_rollouts():
    assert run_rollouts("robosuite/lift", lambda *_: np.zeros((0, 7)), []).shape == (0,)
    with pytest.raises(UserError, match="simulators=-1"):
        run_rollouts("robosuite/lift", lambda *_: np.zeros((0, 7)), [(0, 0)], simulators=-1)


def test_simulators_need_no_torch():
    code = "import sys, mcr.simulation.rollouts, mcr.simulation.recorder; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "mujoco", "h5py"} & set(result.stdout.split())
