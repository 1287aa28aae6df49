"""Fixtures of the tests that run robomimic and robosuite. Without robomimic none is collected.

`bash scripts/test.sh robomimic` installs both and runs these alone.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcr.models.untrained import write_untrained

if importlib.util.find_spec("robomimic") is None:
    collect_ignore_glob = ["test_*.py"]

ROOT = Path(__file__).parents[2]
SIZE = 64  # what the small encoder sees; demonstrations are larger


def pytest_configure(config):
    # robomimic, robosuite, numba and MuJoCo's bindings warn of matters of their own
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")


@pytest.fixture(scope="session")
def encoder_path(tmp_path_factory) -> str:
    """An export of a small ResNet-18 that does not say that its weights are random."""
    from mcr.release.export import export_encoder

    folder = tmp_path_factory.mktemp("encoder")
    checkpoint = write_untrained(folder / "checkpoint.pt", "resnet18", SIZE)
    content = torch.load(checkpoint)
    del content["untrained"]
    torch.save(content, checkpoint)
    export_encoder(checkpoint, folder / "my_encoder")
    return str(folder / "my_encoder")


@pytest.fixture(scope="session")
def lift(tmp_path_factory) -> Path:
    """Four demonstrations of Lift; read only."""
    path = tmp_path_factory.mktemp("lift") / "lift.hdf5"
    run("scripts/record_lift.py", str(path), "--demonstrations", "4")
    return path


@pytest.fixture(scope="session")
def desk(tmp_path_factory, lift, encoder_path) -> Path:
    """A folder with what the guide's examples name: lift.hdf5, my_encoder."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(lift, folder / "lift.hdf5")
    shutil.copytree(encoder_path, folder / "my_encoder")
    return folder


@pytest.fixture(scope="session")
def vit_path(tmp_path_factory) -> str:
    """A checkpoint of a small ViT with random weights."""
    return str(write_untrained(tmp_path_factory.mktemp("vit") / "vit.pt", "vit_ti_16", SIZE))


@pytest.fixture(scope="session")
def command():
    """Runs a script as a user does: command("scripts/x.py", ..., folder=...)."""
    return run


def run(script: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a script as a user does; its output in the error if it fails."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",
        "LP_NUM_THREADS": "0",  # Mesa renders in the thread that asks
    }
    result = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


@pytest.fixture(scope="session")
def small_config(tmp_path_factory) -> Path:
    """cfgs/robomimic_bc_mcr.json with two epochs of two steps and one rollout of five."""
    config = json.loads((ROOT / "cfgs" / "robomimic_bc_mcr.json").read_text())
    config["experiment"]["epoch_every_n_steps"] = 2
    config["experiment"]["validation_epoch_every_n_steps"] = 1
    config["experiment"]["rollout"] |= {"n": 1, "horizon": 5, "rate": 2}
    config["experiment"]["save"]["every_n_epochs"] = 2
    config["train"] |= {"num_epochs": 2, "batch_size": 4, "num_data_workers": 0}
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps(config))
    return path
