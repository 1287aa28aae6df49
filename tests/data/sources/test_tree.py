import itertools
import pickle

import numpy as np
import pytest

from mcr.data.episode import LANGUAGES
from mcr.data.other_data import OTHER_DATA
from mcr.data.sources.tree import write_episode


def write(root, episode, name="x", encode=bytes):
    write_episode(root, name, episode, ("wrist_image_left",), encode, ".jpg")


def test_an_episode_has_upstreams_layout(tmp_path, episode):
    write(tmp_path, episode)
    folder = tmp_path / "x"
    assert {p.name for p in folder.iterdir()} == {"wrist_image_left", *LANGUAGES, OTHER_DATA}
    frames = {f"{step}.jpg" for step in range(episode.length)}
    assert {p.name for p in (folder / "wrist_image_left").iterdir()} == frames
    text = (folder / "language_instruction_2" / "0.txt").read_text(encoding="utf-8")
    assert text == episode.languages["language_instruction_2"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_pickle_has_upstreams_content_and_loads_anywhere(tmp_path, episode):
    write(tmp_path, episode)
    raw = (tmp_path / "x" / OTHER_DATA).read_bytes()
    assert b"numpy.core" not in raw and b"numpy._core" not in raw  # moved between NumPy 1 and 2
    data = pickle.loads(raw)
    assert len(data["action"]) == episode.length == 41
    assert data["action"][3].dtype == np.float64
    np.testing.assert_array_equal(np.stack(data["action"]), episode.signals["action"])
    row = data["action_dict"][5]["joint_velocity"]
    np.testing.assert_array_equal(row, episode.signals["action_dict/joint_velocity"][5])
    assert data["is_first"] == [True] + [False] * 40 and data["is_last"][-1] is True
    assert (data["lab"], data["outcome"]) == ("BVL", "success")
    assert data["file_path"] == episode.file_path and len(data["reward"]) == 41


def test_writing_twice_gives_the_same_bytes(tmp_path, episode):
    write(tmp_path, episode, "a")
    write(tmp_path, episode, "b")
    for path in (tmp_path / "a").rglob("*.*"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("error", [ValueError("undecodable"), OSError("full"), KeyboardInterrupt()])
def test_a_failed_episode_leaves_nothing_behind(tmp_path, episode, error):
    calls = itertools.count()

    def encode(data):
        if next(calls) == 20:
            raise error
        return bytes(data)

    with pytest.raises(type(error)) as caught:
        write(tmp_path, episode, encode=encode)
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, ValueError):
        assert str(caught.value) == "wrist_image_left at step 20: undecodable"


def test_leftovers_of_a_killed_run_are_replaced(tmp_path, episode):
    (tmp_path / ".partial-x" / "wrist_image_left").mkdir(parents=True)
    (tmp_path / ".partial-x" / "wrist_image_left" / "99.jpg").write_bytes(b"old")
    write(tmp_path, episode)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert len(list((tmp_path / "x" / "wrist_image_left").iterdir())) == 41
