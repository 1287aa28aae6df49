"""Fixtures of the tests that run LeRobot. Without it only `test_lerobot_installed.py` is collected.

`bash scripts/test.sh lerobot` installs LeRobot in an environment of its own and runs these alone.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcr.models.layouts import UNTRAINED
from mcr.models.untrained import write_untrained

if importlib.util.find_spec("lerobot") is None:
    collect_ignore_glob = ["test_lerobot_[!i]*.py"]
else:
    os.environ["HF_HUB_OFFLINE"] = "1"  # before LeRobot is imported

ROOT = Path(__file__).parents[2]
SIZE = 64  # pixels that the small encoder sees


def pytest_configure(config):
    # LeRobot, pygame and torchvision warn of matters of their own
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning:lerobot")


@pytest.fixture(scope="session")
def encoder_path(tmp_path_factory) -> str:
    """An export of a small ResNet-18. Its weights are random but not marked as untrained, so its
    batch statistics stay fixed, as those of a trained encoder."""
    import torch

    from mcr.release.export import export_encoder

    folder = tmp_path_factory.mktemp("encoder")
    checkpoint = write_untrained(folder / "checkpoint.pt", "resnet18", SIZE)
    content = torch.load(checkpoint, weights_only=True)
    del content[UNTRAINED]
    torch.save(content, checkpoint)
    export_encoder(checkpoint, folder / "my_encoder")
    return str(folder / "my_encoder")


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A copy of what LeRobot wrote: 6 episodes, cameras of 180 x 320 and 96 x 128. Read only."""
    source = ROOT / "tests" / "data" / "reference" / "lerobot" / "lerobot_v3_video"
    return shutil.copytree(source, tmp_path_factory.mktemp("lerobot") / "videos")


@pytest.fixture(scope="session")
def features(tmp_path_factory, encoder_path, videos) -> Path:
    """Their feature cache. That `mcr features` makes one is tested with the guide."""
    return compute_features(encoder_path, videos, tmp_path_factory.mktemp("features") / "features")


def compute_features(encoder: str, data: Path, out: Path, **options) -> Path:
    """What `mcr features` does, in this process."""
    from mcr.features.extraction import FeatureConfig, extract_features

    settings = {"output": "spatial", "engine": "torch", "workers": 1} | options
    extract_features(encoder, data, out, FeatureConfig(**settings))
    return out


@pytest.fixture(scope="session")
def make_features():
    """make_features(encoder, data, out, **options of FeatureConfig)"""
    return compute_features


@pytest.fixture(scope="session")
def command():
    """Runs a line of a page as a user does: command("lerobot-train ...", folder)."""
    return run_command


def run_command(line: str, folder: Path) -> str:
    """Run a program of this environment; what it printed, also in the error if it fails."""
    program, *arguments = shlex.split(line)
    begin = {
        "mcr": [sys.executable, "-m", "mcr.cli"],
        "python": [sys.executable],
    }.get(program, [str(Path(sys.executable).parent / program)])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*begin, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f"{line}\n{result.stdout[-4000:]}"
    return result.stdout
