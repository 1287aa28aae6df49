"""The same episodes in every format: equal signals, equal batches, and every command on each."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

import mcr
from mcr.data.frames import FrameReader
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, DataConfig
from mcr.data.pack import PackOptions, find_pack, open_pack, pack_path
from mcr.data.selection import select_episodes
from mcr.errors import UserError
from tests.data.formats import FORMATS, LENGTHS, SIZES, record_episodes

NOT_ADDRESSABLE = ("hdf5", "lerobot", "media")


def batch_of(path, packed):
    config = DataConfig(root=str(path), cameras=list(SIZES))
    index = open_index(path)
    reader = FrameReader(index, open_pack(index) if packed else None)
    episodes, _ = select_episodes(index, config.selection)
    loaded = ClipDataset(index, episodes, config, seed=3, frames=reader).load(list(range(40)))
    assert loaded.errors == []
    return loaded.batch


@pytest.mark.parametrize("name", FORMATS)
def test_the_library_reads_what_was_recorded(data_sets, recorded, name):
    data = mcr.open_data(data_sets[name])
    assert set(data.cameras) == set(SIZES) and len(data) == len(recorded)
    assert data.episodes["length"].tolist() == list(LENGTHS)
    for row, episode in enumerate(recorded):
        assert np.array_equal(data.signal("state", row), episode.state)
        assert np.array_equal(data.signal("action", row), episode.action)
        assert data.text(row) == episode.text
        for camera, frames in episode.frames.items():
            assert data.size(row, camera) == SIZES[camera]
            assert np.array_equal(data.frames(row, camera), frames)
            assert np.array_equal(data.frames(row, camera, [5, 2, 2]), frames[[5, 2, 2]])


@pytest.mark.parametrize("name", FORMATS)
def test_all_formats_give_the_same_batch(data_sets, name):
    own, reference = batch_of(data_sets[name], packed=False), batch_of(data_sets["rlds"], False)
    for key, value in vars(reference).items():
        assert np.array_equal(getattr(own, key), value), key


@pytest.mark.parametrize("name", NOT_ADDRESSABLE)
def test_a_pack_changes_pictures_by_its_jpegs_only(data_sets, name):
    packed, plain = batch_of(data_sets[name], packed=True), batch_of(data_sets[name], packed=False)
    difference = np.abs(packed.frames.numpy().astype(int) - plain.frames.numpy().astype(int))
    assert 0 < difference.mean() < 2 and difference.max() < 25
    for key, value in vars(plain).items():
        assert key == "frames" or np.array_equal(getattr(packed, key), value), key


def test_a_pack_makes_pictures_smaller_on_request(data_sets):
    index = open_index(data_sets["hdf5"])
    pack = open_pack(index, PackOptions(quality=90, side=16))
    assert pack.sizes[0].tolist() == [[16, round(64 * 16 / 48)], [16, round(40 * 16 / 32)]]
    frame = FrameReader(index, pack).read(0, 0, 3)
    assert frame.shape == (16, 21, 3)
    assert open_pack(index).description == "JPEG 90, side 16", "a finished pack is taken as it is"
    assert open_pack(index, PackOptions()).description == "JPEG 95, side 256"


def test_a_pack_of_other_data_is_not_used(recorded, tmp_path):
    path = FORMATS["hdf5"](tmp_path, recorded)
    open_pack(open_index(path))
    assert find_pack(open_index(path)) is not None
    path.unlink()
    repainted = record_episodes()
    for episode in repainted:
        episode.frames["front"][:] //= 2
    FORMATS["hdf5"](tmp_path, repainted)
    index = open_index(path)
    assert find_pack(index) is None
    frame = FrameReader(index, open_pack(index)).read(0, index.cameras.index("front"), 0)
    assert np.abs(frame.astype(int) - repainted[0].frames["front"][0]).mean() < 2


def test_a_folder_that_is_no_pack_is_kept(recorded, tmp_path):
    index = open_index(FORMATS["hdf5"](tmp_path, recorded))
    pack_path(index).mkdir()
    (pack_path(index) / "precious.txt").write_text("kept")
    with pytest.raises(UserError, match="is no pack"):
        open_pack(index)
    assert (pack_path(index) / "precious.txt").read_text() == "kept"


@pytest.mark.parametrize("name", FORMATS)
def test_repainted_pictures_change_the_fingerprint_but_not_that_of_signals(
    recorded, tmp_path, name
):
    before = open_index(FORMATS[name](tmp_path / "a", recorded))
    repainted = record_episodes()
    for episode in repainted:
        episode.frames["front"][3] = 255 - episode.frames["front"][3]
        episode.jpegs["front"][3] = episode.jpegs["front"][4]
    after = open_index(FORMATS[name](tmp_path / "b", repainted))
    again = open_index(FORMATS[name](tmp_path / "c", recorded))
    assert before.fingerprint == again.fingerprint != after.fingerprint
    assert before.signals_fingerprint == after.signals_fingerprint


@pytest.mark.parametrize("name", FORMATS)
def test_steps_are_what_a_policy_needs(data_sets, recorded, name):
    data = mcr.open_data(data_sets[name], pack=False)
    steps = pickle.loads(pickle.dumps(data.steps(chunk=5, history=2)))
    assert len(steps) == sum(LENGTHS)
    item, episode = steps[LENGTHS[0] + LENGTHS[1] - 2], recorded[1]
    assert (item["episode"], item["step"]) == (1, 7)
    assert np.array_equal(item["images"]["wrist"][0].permute(1, 2, 0), episode.frames["wrist"][6])
    assert np.array_equal(item["images"]["wrist"][1].permute(1, 2, 0), episode.frames["wrist"][7])
    assert np.array_equal(item["state"], episode.state[[6, 7]])
    assert np.array_equal(item["action"], episode.action[[7, 8, 8, 8, 8]])
    assert item["mask"].tolist() == [True, True, False, False, False]
    assert item["text"] == episode.text
    first = steps[0]
    assert np.array_equal(first["state"][0], first["state"][1]), "before the first step: the first"
    batch = next(iter(DataLoader(steps, batch_size=6, num_workers=1)))
    assert batch["images"]["front"].shape == (6, 2, 3, *SIZES["front"])


def test_the_statistics_of_steps_are_those_of_the_chosen_episodes(data_sets, recorded):
    steps = mcr.open_data(data_sets["rlds"]).steps(episodes=[0, 2])
    state = np.concatenate([recorded[0].state, recorded[2].state])
    assert np.allclose(steps.statistics("state")["mean"], state.mean(0), atol=1e-6)
    assert np.allclose(steps.statistics("state")["std"], state.std(0), atol=1e-6)


@pytest.mark.parametrize(
    "ask, sentence",
    [
        (lambda data: data.frames("episode_00", "front"), "did you mean 'episode_00"),
        (lambda data: data.frames(0, "frnt"), "did you mean 'front'"),
        (lambda data: data.signal("stte", 0), "did you mean 'state'"),
        (lambda data: data.steps(chunk=0), "chunk=0"),
        (lambda data: data.steps(cameras=["top"]), "camera='top' is unknown"),
    ],
)
def test_a_wrong_name_gets_the_nearest(data_sets, ask, sentence):
    with pytest.raises(UserError, match=sentence):
        ask(mcr.open_data(data_sets["tree"]))


def test_a_step_beyond_the_episode_is_an_index_error(data_sets):
    data = mcr.open_data(data_sets["tree"])
    for ask in (lambda: data.frames(0, "front", 14), lambda: data.signal("state", 0, [20])):
        with pytest.raises(IndexError):
            ask()
