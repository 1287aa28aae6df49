import itertools
import pickle

import numpy as np
import pytest

import mcr
from mcr.data.other_data import OTHER_DATA
from mcr.data.pictures import decode
from mcr.data.schema import LANGUAGES
from mcr.data.sources.tree import TreeSource
from mcr.errors import UserError
from tests.episodes import write_folder


def write(root, episode, name="x", encode=bytes):
    write_folder(root, name, episode, ("wrist_image_left",), encode, ".jpg")


def test_an_episode_has_upstreams_layout(tmp_path, episode):
    write(tmp_path, episode)
    folder = tmp_path / "x"
    assert {p.name for p in folder.iterdir()} == {"wrist_image_left", *LANGUAGES, OTHER_DATA}
    frames = {f"{step}.jpg" for step in range(episode.length)}
    assert {p.name for p in (folder / "wrist_image_left").iterdir()} == frames
    text = (folder / "language_instruction_2" / "0.txt").read_text(encoding="utf-8")
    assert text == episode.texts[1]
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
    assert not {"session", "date", "split"} & data.keys()  # the lab and the name tell them
    assert (data["lab"], data["outcome"]) == ("BVL", "success")
    assert data["file_path"] == episode.origin.file_path and len(data["reward"]) == 41


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


# --------------------------------------------------------------------------- one's own recordings


def recording(length=5, **changes):
    generator = np.random.default_rng(length)
    arguments = {
        "frames": {
            "front": generator.integers(0, 256, (length, 6, 8, 3), dtype=np.uint8),
            "hand": [generator.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(length)],
        },
        "state": generator.normal(size=(length, 9)),
        "action": generator.normal(size=(length, 10)).astype(np.float32),
    }
    return arguments | changes


def read_tree(root):
    episodes = [e for part in TreeSource(root).parts() for e in part.episodes()]
    assert not any(isinstance(e, str) for e in episodes), episodes
    return {e.origin.name: e for e in episodes}


def test_what_was_written_is_read_back(tmp_path):
    own = recording(text="put the Würfel away", session="kitchen 3")
    folder = mcr.write_episode(tmp_path / "new" / "tree", "episode_000", **own)
    mcr.write_episode(tmp_path / "new" / "tree", "2026-01-31_take_1", **recording(7))
    mcr.write_episode(tmp_path / "new" / "tree", "plain", **recording(3, state=None))
    assert folder == tmp_path / "new" / "tree" / "episode_000"
    episodes = read_tree(tmp_path / "new" / "tree")
    episode = episodes["episode_000"]
    assert episode.length == 5 and episode.texts[0] == "put the Würfel away"
    assert np.array_equal(episode.signals["state"], own["state"].astype(np.float32))
    assert np.array_equal(episode.signals["action"], own["action"])
    for camera, frames in own["frames"].items():
        files = [folder / camera / name for name in episode.pictures[camera].names]
        assert np.array_equal([decode(file.read_bytes()) for file in files], np.stack(frames))
    sessions = {name: e.origin.session for name, e in episodes.items()}
    assert sessions == {
        "episode_000": "kitchen 3",
        "2026-01-31_take_1": "/2026-01-31",
        "plain": "plain",
    }
    assert set(episodes["plain"].signals) == {"action"}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"action": np.zeros((4, 10))}, "5 of front, 5 of hand, 5 of state, 4 of action"),
        ({"state": np.zeros((5, 3, 3))}, r"state is float64 \[5, 3, 3\], not numbers"),
        ({"state": [[1, 2], [3]]}, "state has steps of different sizes"),
        ({"state": np.array([["a"]] * 5)}, "not numbers"),
        ({"action": np.full((5, 2), np.nan)}, "action at step 0 is NaN"),
        ({"action": np.full((5, 2), 1e300)}, "too large for float32"),
        ({"frames": {}}, "give at least one camera"),
        ({"frames": {"front": np.zeros((5, 3, 6, 8), np.uint8)}}, "use frame.transpose"),
        ({"frames": {"front": np.zeros((5, 6, 8, 3))}}, "front at step 0 is float64"),
        ({"frames": {"front": []}}, "front has no frames"),
        (
            {"frames": {"front": [np.zeros((6, 8, 3), np.uint8), np.zeros((6, 9, 3), np.uint8)]}},
            r"front at step 1 is \(6, 9\) \(height, width\), at step 0 \(6, 8\)",
        ),
        ({"frames": {"../front": np.zeros((5, 6, 8, 3), np.uint8)}}, "is no name of a camera"),
        ({"frames": {OTHER_DATA: np.zeros((5, 6, 8, 3), np.uint8)}}, "is no name of a camera"),
        ({"text": None}, "must be texts"),
    ],
)
def test_wrong_recordings_are_refused_and_leave_nothing(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        mcr.write_episode(tmp_path / "tree", "episode_000", **recording(**changes))
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "/tmp/x", "a/b", ".x", "a\nb", "x" * 201, "a:b"]
)
def test_a_name_that_is_not_safe_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="name"):
        mcr.write_episode(tmp_path / "tree", name, **recording())
    assert list(tmp_path.iterdir()) == []


def test_an_episode_is_never_overwritten(tmp_path):
    mcr.write_episode(tmp_path, "x", **recording())
    with pytest.raises(UserError, match="x exists"):
        mcr.write_episode(tmp_path, "x", **recording(6))
    assert read_tree(tmp_path)["x"].length == 5


def test_the_converter_of_the_documentation_runs(tmp_path, monkeypatch):
    source = mcr.write_episode.__doc__.partition("::")[2]
    lines = [line[8:] for line in source.splitlines()]
    (tmp_path / "npz").mkdir()
    generator = np.random.default_rng(0)
    for number in range(2):
        np.savez(
            tmp_path / "npz" / f"take_{number}.npz",
            rgb_front=generator.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8),
            rgb_hand=generator.integers(0, 256, (4, 5, 5, 3), dtype=np.uint8),
            joints=generator.normal(size=(4, 7)),
            gripper=generator.normal(size=(4, 1)),
            target=generator.normal(size=(4, 8)),
            task="stack",
        )
    monkeypatch.setattr("sys.argv", ["convert.py", str(tmp_path / "npz"), str(tmp_path / "tree")])
    exec("\n".join(lines), {})
    episodes = read_tree(tmp_path / "tree")
    assert {name: e.texts[0] for name, e in episodes.items()} == {
        "take_0": "stack",
        "take_1": "stack",
    }
