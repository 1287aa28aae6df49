import json
import pickle

import numpy as np
import pytest

from mcr.data.droid import RldsDataset
from mcr.data.frames import FrameReader
from mcr.data.index import Index, build_index, default_index_path, open_index
from mcr.data.other_data import read_other_data
from mcr.data.pictures import decode
from mcr.errors import UserError


def episodes_of(root):
    dataset = RldsDataset.open(root)
    return [dataset.parse(record) for s in dataset.shards for record in dataset.records(s)]


def test_holds_every_number_and_every_frame_of_the_shards(shards):
    index = open_index(shards)
    reader = FrameReader(index)
    episodes = {episode.origin.name: episode for episode in episodes_of(shards)}
    assert [name.decode() for name in index.names] == sorted(episodes)
    for row, name in enumerate(index.names):
        episode = episodes[name.decode()]
        assert index.lengths[row] == episode.length
        block = index.signals[index.starts[row] :][: episode.length]
        for key, (begin, end) in index.info["columns"].items():
            expected = episode.signals[key].reshape(episode.length, -1)
            assert np.array_equal(block[:, begin:end], expected), key
        for number, camera in enumerate(index.cameras):
            for step in (0, episode.length - 1):
                expected = decode(episode.encoded_frame(camera, step))
                assert np.array_equal(reader.read(row, number, step), expected)
    reader.close()


def test_tree_and_shards_have_the_same_content(shards, tree):
    from_shards, from_tree = open_index(shards), open_index(tree)
    assert from_shards.fingerprint == from_tree.fingerprint
    assert from_shards.info["columns"] == from_tree.info["columns"]
    shared = ["name", "length", "session", "lab", "outcome", "file_path", "language_instruction"]
    assert from_shards.table[shared].equals(from_tree.table[shared])


def test_pickles_small_and_opens_again(shards):
    index = open_index(shards)
    _ = index.signals
    blob = pickle.dumps(index)
    assert len(blob) < 1000
    assert pickle.loads(blob).fingerprint == index.fingerprint


def test_a_damaged_record_is_left_out_and_named(shards, capsys):
    first = RldsDataset.open(shards).shards[0]
    data = bytearray(first.read_bytes())
    data[1000] ^= 1
    first.write_bytes(bytes(data))
    index = open_index(shards)
    assert len(index) == 3
    assert first.name in index.info["problems"][0] and "CRC" in index.info["problems"][0]
    assert "left out" in capsys.readouterr().out


def test_an_incomplete_folder_of_a_tree_is_left_out_and_named(tree):
    folder = sorted(tree.iterdir())[0]
    (folder / "exterior_image_1_left" / "5.png").unlink()
    index = open_index(tree)
    assert len(index) == 3
    assert folder.name in index.info["problems"][0]


def test_an_episode_with_nan_is_left_out_and_named(tree):
    folder = sorted(tree.iterdir())[0]
    data = read_other_data(folder / "other_data.pkl")
    data["joint_position"][7] = np.full(7, np.nan)
    (folder / "other_data.pkl").write_bytes(pickle.dumps(data))
    index = open_index(tree)
    assert len(index) == 3
    assert "joint_position is not finite at step 7" in index.info["problems"][0]
    assert np.isfinite(index.signals).all()


def test_a_changed_data_set_is_refused(shards, tree):
    open_index(shards)
    open_index(tree)
    with RldsDataset.open(shards).shards[1].open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="00001-of-00002"):
        open_index(shards)
    sorted(tree.iterdir())[0].rename(tree / "another_name")
    with pytest.raises(UserError, match="changed since"):
        open_index(tree)


def test_an_index_of_other_data_is_refused(shards, tree):
    open_index(shards)
    with pytest.raises(UserError, match="indexes"):
        open_index(tree, default_index_path(shards))


@pytest.mark.parametrize("content", ["nothing", "file", "stray"])
def test_a_folder_without_a_data_set_is_refused(tmp_path, content):
    root = tmp_path / "data"
    if content == "file":
        root.write_text("")
    if content == "stray":
        (root / "folder").mkdir(parents=True)
    with pytest.raises(UserError, match=str(root)):
        open_index(root)
    assert not default_index_path(root).exists()


def test_another_format_is_refused(shards):
    path = open_index(shards).path
    info = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(info | {"format": "mcr-index-0"}))
    with pytest.raises(UserError, match="mcr-index-0"):
        Index(path)


def test_one_and_two_processes_build_the_same(shards, tmp_path):
    one = build_index(shards, tmp_path / "one", workers=1)
    two = build_index(shards, tmp_path / "two", workers=2)
    assert one.info == two.info
    for name in ("signals.f32", "frame_offsets.i64", "starts.npy", "episodes.csv"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


def test_an_index_that_says_view_for_camera_is_read(reference, tmp_path):
    index = build_index(reference, tmp_path / "index", workers=1)
    file = tmp_path / "index" / "index.json"
    info = json.loads(file.read_text())
    info["views"] = info.pop("cameras")
    file.write_text(json.dumps(info))
    assert Index(tmp_path / "index").cameras == index.cameras != ()
