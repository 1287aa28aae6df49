"""Extraction from every format: the same episodes give trees of the same content."""

import shutil

import numpy as np
import pytest

from mcr.data.extract import extract
from mcr.data.extract_shard import Options
from mcr.data.other_data import read_other_data
from mcr.data.pictures import decode
from mcr.errors import UserError
from tests.data.formats import FORMATS

OTHERS = sorted(set(FORMATS) - {"tree"})


@pytest.mark.parametrize("name", OTHERS)
def test_a_tree_holds_what_was_recorded(data_sets, recorded, tmp_path, name):
    summary = extract(data_sets[name], tmp_path / "tree", workers=1)
    assert summary.counts["written"] == len(recorded), str(summary)
    folders = sorted((tmp_path / "tree").iterdir())
    for folder, episode in zip(folders, recorded, strict=True):
        data = read_other_data(folder / "other_data.pkl")
        assert np.array_equal(np.stack(data["state"]), episode.state)
        action = data.get("action", data.get("actions"))  # as robomimic calls it
        assert np.array_equal(np.stack(action), episode.action)
        text = folder / "language_instruction" / "0.txt"
        assert not text.exists() or text.read_text("utf-8") == episode.text
        for camera, frames in episode.frames.items():
            files = [folder / camera / f"{step}.png" for step in range(len(frames))]
            assert len(list((folder / camera).iterdir())) == len(files)
            assert np.array_equal([decode(file.read_bytes()) for file in files], frames)


@pytest.mark.parametrize("name", ["rlds", "lerobot"])
def test_jpegs_are_stored_or_nearly_the_same(data_sets, recorded, tmp_path, name):
    extract(data_sets[name], tmp_path / "tree", Options(("wrist",), "jpeg"), workers=1, limit=1)
    (folder,) = (tmp_path / "tree").iterdir()
    found = (folder / "wrist" / "7.jpg").read_bytes()
    if name == "rlds":
        assert found == recorded[0].jpegs["wrist"][7]
    difference = np.abs(decode(found).astype(int) - recorded[0].frames["wrist"][7])
    assert difference.mean() < 2


def test_what_is_missing_is_written_again(data_sets, tmp_path, digest):
    for part in ((2, 2), (1, 2)):
        extract(data_sets["hdf5"], tmp_path / "tree", part=part, workers=1)
    whole = digest(tmp_path / "tree")
    assert extract(data_sets["hdf5"], tmp_path / "tree", workers=1).counts["already there"] == 4
    shutil.rmtree(min((tmp_path / "tree").iterdir()))
    assert extract(data_sets["hdf5"], tmp_path / "tree", workers=1).counts["written"] == 1
    assert digest(tmp_path / "tree") == whole


def test_a_tree_is_not_extracted_again(data_sets, tmp_path):
    with pytest.raises(UserError, match="is a tree already"):
        extract(data_sets["tree"], tmp_path / "again", workers=1)
