"""Fixtures that several folders of tests share: the reference shards, and a tree made of them."""

import shutil
from pathlib import Path

import pytest
import torch

from mcr.data import pictures
from mcr.data.episode import unique_names
from tests.episodes import read_episodes, write_folder

pytest_plugins = ["tests.networks"]
REFERENCE = Path(__file__).parent / "data" / "droid_tfds"
SAMPLE = Path(__file__).parents[1] / "resources" / "sample_droid" / "1.0.0"

# The files that take longest, longest first; `--durations 0` shows what each test takes. Workers
# get whole files (--dist loadfile), so that what a file's tests share is made once. A long file
# that is begun last would keep one worker busy while the others have nothing left to do.
LONGEST_FILES = (
    "test_distributed.py",
    "test_train.py",
    "test_readme.py",
    "test_ray_executor.py",
    "test_extract.py",
    "test_cache.py",
    "test_behaviour_cloning.py",
    "test_command_line.py",
    "test_programs.py",
)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: place_in_queue(item.path.name))
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "slow: minutes long; run with --slow"
    if not torch.cuda.is_available():
        reasons["gpu"] = "gpu: there is no CUDA GPU here"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def place_in_queue(file: str) -> int:
    return LONGEST_FILES.index(file) if file in LONGEST_FILES else len(LONGEST_FILES)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The RLDS data set written by TensorFlow Datasets: 4 episodes in 2 shards. Read only."""
    return REFERENCE / "1.0.0"


@pytest.fixture(scope="session")
def sample() -> Path:
    """The sample data: 24 simulated episodes. Read only, so give its index another place."""
    return SAMPLE


@pytest.fixture
def shards(tmp_path, reference) -> Path:
    """A copy of the reference shards that a test may damage."""
    return shutil.copytree(reference, tmp_path / "shards", copy_function=shutil.copyfile)


@pytest.fixture
def tree(tmp_path, reference) -> Path:
    """The reference shards as a PNG tree of all three cameras."""
    root = tmp_path / "tree"
    root.mkdir()
    episodes = read_episodes(reference)
    names = unique_names([episode.origin for episode in episodes])
    for name, episode in zip(names, episodes, strict=True):
        write_folder(
            root,
            name,
            episode,
            tuple(episode.pictures),
            lambda data: pictures.encode_png(pictures.decode(data)),
            ".png",
        )
    return root
