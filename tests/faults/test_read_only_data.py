"""Data in a folder that nobody may write to: index and pack lie in the user's cache instead."""

import contextlib
import shutil

import pytest

from mcr.data.index import default_index_path, open_index
from mcr.data.pack import open_pack, pack_path
from mcr.errors import UserError
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.models.untrained import write_untrained
from mcr.policies.config import Config
from mcr.policies.demonstrations import open_demonstrations
from tests.data.formats import record_episodes, write_hdf5
from tests.faults.places import mounted


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "mcr"


@contextlib.contextmanager
def read_only(folder, place):
    """A folder as it looks where its file system is mounted read-only."""
    with mounted(place, "--bind", "--options", "ro", str(folder)):
        with pytest.raises(OSError, match="Read-only"):
            (place / "probe").touch()
        yield place


@pytest.mark.parametrize("earlier", ["nothing", "old", "current"])
def test_every_reader_of_data_works(home, reference, tmp_path, earlier):
    data = shutil.copytree(reference, tmp_path / "disk" / "data")
    if earlier != "nothing":
        path = open_index(data).path
        if earlier == "old":
            about = path / "index.json"
            about.write_text(about.read_text().replace("mcr-index-", "mcr-index-0", 1))
    with read_only(tmp_path / "disk", tmp_path / "place") as place:
        index = open_index(place / "data")
        assert len(index) == 4
        in_home = home / "indexes" in index.path.parents
        assert in_home != (earlier == "current")
        if earlier == "nothing":
            weights = write_untrained(tmp_path / "w.pt", "timm:test_resnet")
            read_by_all(weights, place / "data", tmp_path)
        with pytest.raises(UserError, match=r"Read-only .* choose a place with --index"):
            open_index(place / "data", place / "mine.index")


def read_by_all(weights, data, out):
    camera = ("exterior_image_1_left",)
    options = FeatureConfig(cameras=camera, engine="torch", workers=1)
    extract_features(weights, data, out / "cache", options)
    config = Config()
    config.demonstrations.data = str(data)
    assert len(open_demonstrations(config.demonstrations).actions)


def test_a_pack_of_data_with_an_index(home, tmp_path):
    (tmp_path / "disk").mkdir()
    path = write_hdf5(tmp_path / "disk" / "data", record_episodes())
    open_index(path)
    with read_only(tmp_path / "disk", tmp_path / "place") as place:
        index = open_index(place / path.relative_to(tmp_path / "disk"))
        assert index.path == default_index_path(index.source)
        pack = open_pack(index, workers=1)
        assert pack.path == pack_path(index) and home / "packs" in pack.path.parents
        assert open_pack(index).path == pack.path
