"""Trees of any robot: what is read, and that an odd episode costs only itself."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mcr
from mcr.data.other_data import OTHER_DATA, read_other_data
from mcr.data.pictures import decode
from mcr.data.schema import Schema
from mcr.data.sources import open_source
from mcr.data.sources.tree import TreeSource
from mcr.data.sources.tree_episode import order_frames
from mcr.errors import UserError
from tests.episodes import read_episodes

LENGTH = 6


def write(root: Path, name: str, length: int = LENGTH, cameras=("front", "hand")) -> Path:
    generator = np.random.default_rng(length)
    sizes = {"front": (10, 12), "hand": (8, 8)}
    return mcr.write_episode(
        root,
        name,
        {
            c: generator.integers(0, 256, (length, *sizes.get(c, (5, 5)), 3), dtype=np.uint8)
            for c in cameras
        },
        generator.normal(size=(length, 9)),
        generator.normal(size=(length, 10)),
    )


@pytest.fixture
def own(tmp_path) -> Path:
    """Three episodes of another robot."""
    for number in range(3):
        write(tmp_path / "own", f"episode_{number:03d}", LENGTH + number)
    return tmp_path / "own"


def read(root, schema=None):
    parts = pickle.loads(pickle.dumps(TreeSource(root, schema).parts()))
    entries = [entry for part in parts for entry in part.episodes()]
    episodes = {e.key: e for e in entries if not isinstance(e, str)}
    return episodes, [e for e in entries if isinstance(e, str)]


def change_data(folder: Path, change) -> None:
    data = read_other_data(folder / OTHER_DATA)
    data = change(data) or data
    (folder / OTHER_DATA).write_bytes(pickle.dumps(data))


def test_another_robots_tree(own):
    source = open_source(own)
    assert isinstance(source, TreeSource)
    assert source.cameras == {"front": "front", "hand": "hand"}
    episodes, problems = read(own)
    assert problems == [] and list(episodes) == [f"episode_{n:03d}" for n in range(3)]
    episode = episodes["episode_001"]
    assert episode.length == 7 and episode.texts == ("", "", "")
    assert {name: array.shape for name, array in episode.signals.items()} == {
        "state": (7, 9),
        "action": (7, 10),
    }
    assert {c: p.size for c, p in episode.pictures.items()} == {"front": (10, 12), "hand": (8, 8)}
    assert episode.pictures["hand"].file == "episode_001/hand"
    assert episode.pictures["hand"].names == tuple(f"{step}.png" for step in range(7))
    assert [e.origin.session for e in episodes.values()] == list(episodes), "one session each"


def test_a_tree_of_droid_is_what_its_shards_are(tree, reference):
    episodes, problems = read(tree)
    assert problems == []
    for shard_episode in read_episodes(reference):
        origin = shard_episode.origin
        episode = episodes[origin.name]
        assert episode.origin.session == origin.session and "/" in origin.session
        assert (episode.origin.lab, episode.origin.outcome) == (origin.lab, origin.outcome)
        assert (episode.origin.date, episode.origin.name) == (origin.date, origin.name)
        assert episode.origin.file_path == origin.file_path
        assert episode.texts == shard_episode.texts
        assert episode.signals.keys() == shard_episode.signals.keys()
        for name, values in shard_episode.signals.items():
            assert np.array_equal(episode.signals[name].reshape(values.shape), values)
            assert episode.signals[name].dtype == values.dtype
        assert episode.pictures.keys() == shard_episode.pictures.keys()


def test_sessions_of_droid_do_not_depend_on_the_cameras(tree, reference):
    for folder in tree.glob("*/exterior_image_*"):
        shutil.rmtree(folder)
    sessions = {e.origin.name: e.origin.session for e in read_episodes(reference)}
    assert {k: e.origin.session for k, e in read(tree)[0].items()} == sessions


def test_upstreams_names_tell_the_date(own):
    (own / "episode_000").rename(own / "2023-02-28_Tue_Feb_28_20:25:47_2023")
    (own / "episode_001").rename(own / "20230228_1")
    episodes, _ = read(own)
    upstreams = episodes["2023-02-28_Tue_Feb_28_20:25:47_2023"].origin
    assert upstreams.name == "2023-02-28_Tue_Feb_28_20_25_47_2023"
    assert (upstreams.session, upstreams.date) == ("/2023-02-28", "2023-02-28")
    assert episodes["20230228_1"].origin.session == "20230228_1"


@pytest.mark.parametrize(
    "rename",
    [
        lambda step: f"{step:06d}.png",
        lambda step: f"{step + 1}.png",
        lambda step: f"{step}.PNG",
        lambda step: f"frame_{step}.png",
        lambda step: f"{1675868700123456 + 33_000 * step}.png",
        lambda step: f"{1675868700 + step / 8}.png",
    ],
)
def test_names_of_frames(own, rename):
    """With 12 frames, the order of text is another one than that of numbers."""
    folder = write(own, "episode_003", 12)
    before = [decode((folder / "front" / f"{step}.png").read_bytes()) for step in range(12)]
    for step in range(12):
        (folder / "front" / f"{step}.png").rename(folder / "front" / f"x{rename(step)}")
    for path in (folder / "front").iterdir():
        path.rename(path.with_name(path.name[1:]))
    (folder / "front" / ".DS_Store").write_text("")
    episodes, problems = read(own)
    assert problems == []
    names = episodes["episode_003"].pictures["front"].names
    assert np.array_equal([decode((folder / "front" / n).read_bytes()) for n in names], before)


def test_times_are_compared_as_numbers():
    assert order_frames(["10.5.png", "10.25.png", "9.75.png"]) == [
        "9.75.png",
        "10.25.png",
        "10.5.png",
    ]


@pytest.mark.parametrize(
    "suffix, format, mode",
    [
        (".jpeg", "JPEG", "RGB"),
        (".jpg", "JPEG", "L"),
        (".png", "PNG", "RGBA"),
        (".png", "PNG", "L"),
        (".png", "PNG", "I;16"),
    ],
)
def test_pictures_of_any_kind_beside_others(own, suffix, format, mode):
    folder = own / "episode_000" / "hand"
    shutil.rmtree(folder)
    folder.mkdir()
    for step in range(LENGTH):
        grey = np.full((7, 9), 1000 * step, np.uint16)
        image = Image.fromarray(grey) if mode == "I;16" else Image.new(mode, (9, 7))
        image.save(folder / f"{step}{suffix}", format)
    episodes, problems = read(own)
    place = episodes["episode_000"].pictures["hand"]
    assert problems == [] and place.size == (7, 9)
    last = decode((folder / place.names[-1]).read_bytes())
    assert last.shape == (7, 9, 3) and (mode != "I;16" or (last == 5000 >> 8).all())


def test_cameras_of_one_episode_do_not_decide_for_others(own):
    write(own, "a_first", cameras=("top",))
    shutil.rmtree(own / "episode_001" / "hand")
    episodes, problems = read(own)
    assert problems == [] and list(TreeSource(own).cameras) == ["front", "hand", "top"]
    cameras = {name: list(e.pictures) for name, e in episodes.items()}
    assert cameras == {
        "a_first": ["top"],
        "episode_000": ["front", "hand"],
        "episode_001": ["front"],
        "episode_002": ["front", "hand"],
    }


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda d: d.update(state=np.stack(d["state"])), {"state": (6, 9), "action": (6, 10)}),
        (lambda d: d.update(discount=None), {"state": (6, 9), "action": (6, 10)}),
        (lambda d: d.update(discount=[None] * 6), {"state": (6, 9), "action": (6, 10)}),
        (lambda d: {"state": d["state"]}, {"state": (6, 9)}),
        (lambda d: {}, {"state": (6, 9), "action": (6, 10)}),
        (lambda d: d.update(file_path="run7.h5", fps=10, note=["x"] * 6), None),
        (lambda d: d.update(open=[True] * 6, grip=list(range(6))), {"open": (6,), "grip": (6,)}),
        (lambda d: d.update(pose=[np.eye(4)] * 6), {"pose": (6, 16)}),
        (lambda d: d.update(embedding=np.zeros((6, 512))), None),
        (lambda d: {"observation": {"state": np.ones((6, 2))}}, {"state": (6, 2)}),
        (lambda d: {"action": [{"arm": np.ones(2), "hand": 1}] * 6},
         {"action/arm": (6, 2), "action/hand": (6,)}),
    ],
)  # fmt: skip
def test_signals_of_any_kind(own, change, expected):
    change_data(own / "episode_000", change)
    episodes, problems = read(own)
    assert problems == []
    signals = episodes["episode_000"].signals
    shapes = {name: array.shape for name, array in signals.items()}
    usual = {"state": (6, 9), "action": (6, 10)}
    if expected is None:
        assert shapes == usual
    else:
        assert shapes in (expected, usual | expected)
    assert all(array.dtype == np.float32 for array in signals.values())


def test_a_large_signal_is_read_if_the_schema_names_it(own):
    for folder in own.iterdir():
        length = len(read_other_data(folder / OTHER_DATA)["state"])
        change_data(folder, lambda d, n=length: d.update(embedding=np.zeros((n, 512))))
    assert "embedding" not in read(own)[0]["episode_000"].signals
    episodes, _ = read(own, Schema(state=("embedding",)))
    assert episodes["episode_000"].signals["embedding"].shape == (6, 512)


def test_a_schema_chooses_and_renames(own):
    schema = Schema.of(
        {
            "cameras": {"left": "observation/hand"},
            "recording": {"pattern": r"episode_(?P<session>\d\d)"},
            "language": ["task"],
        }
    )
    (own / "episode_000" / "task").mkdir()
    (own / "episode_000" / "task" / "0.txt").write_text("pour", encoding="utf-8")
    source = TreeSource(own, schema)
    assert source.cameras == {"left": "hand"}
    episodes, problems = read(own, schema)
    assert problems == [] and episodes["episode_000"].texts == ("pour",)
    assert episodes["episode_000"].pictures["left"].file == "episode_000/hand"
    assert {e.origin.session for e in episodes.values()} == {"00"}
    assert TreeSource(own, source.schema).schema == source.schema


@pytest.mark.parametrize(
    "schema, sentence",
    [
        ({"cameras": {"x": "frnt"}}, "did you mean 'front'"),
        ({"state": ["stat"]}, "did you mean 'state'"),
        ({"default_cameras": ["hnd"]}, "did you mean 'hand'"),
    ],
)
def test_a_wrong_key_of_a_schema_gets_the_nearest(own, schema, sentence):
    with pytest.raises(UserError, match=sentence):
        TreeSource(own, Schema.of(schema))


def test_a_replaced_picture_changes_the_checksum(own):
    before = read(own)[0]["episode_000"].pictures
    write(own.parent / "other", "x", LENGTH)
    other = np.zeros((10, 12, 3), np.uint8)
    Image.fromarray(other).save(own / "episode_000" / "front" / "3.png")
    after = read(own)[0]["episode_000"].pictures
    assert before["front"].checksum != after["front"].checksum
    assert before["hand"].checksum == after["hand"].checksum


# --------------------------------------------------------------------------- bad input


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path.name)


def rename_bytes(path: Path, name: bytes) -> None:
    os.rename(os.fsencode(path), os.path.join(os.fsencode(path.parent), name))


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda e: (e / "front/3.png").unlink(), "front: 1 frame is missing, the first is 3"),
        (lambda e: (e / "front/7.png").unlink(), "7 in front, 8 in hand"),
        (lambda e: shutil.copy(e / "hand/3.png", e / "hand/03.png"), "have the same number"),
        (lambda e: (e / "hand/0.png").write_bytes(b""), "hand: neither JPEG nor PNG"),
        (lambda e: fifo(e / "hand/2.png"), "hand/2.png is no regular file"),
        (lambda e: [shutil.rmtree(e / c) for c in ("front", "hand")], "has no frames"),
        (lambda e: (e / OTHER_DATA).unlink(), "other_data.pkl is missing"),
        (lambda e: fifo(e / OTHER_DATA), "is no regular file"),
        (lambda e: (e / OTHER_DATA).write_bytes(b"\x80\x04"), "damaged pickle"),
        (lambda e: change_data(e, lambda d: d["action"].pop()[:0].any()), "7 in action of other"),
        (lambda e: change_data(e, lambda d: d.update(action=[])), "0 in action of other_data.pkl"),
        (
            lambda e: change_data(e, lambda d: d.update(action=[np.ones(n) for n in range(8)])),
            "action has rows of different shapes",
        ),
        (
            lambda e: change_data(e, lambda d: d.update(action=[{"a": 1}] * 7 + [{"b": 1}])),
            "action at step 7 has b; step 0 has a",
        ),
        (
            lambda e: change_data(e, lambda d: d.update(action=[{"a": 1}] * 7 + [None])),
            "action at step 7 has None",
        ),
        (
            lambda e: change_data(e, lambda d: d.update(action=[10**400] * 8)),
            "action has rows that are no numbers",
        ),
        (
            lambda e: change_data(e, lambda d: d.update(action=[1, None] * 4)),
            "action has rows that are no numbers",
        ),
        (lambda e: loop(e / "front"), "symbolic links"),
        (lambda e: rename_bytes(e / "front/3.png", b"\xff.png"), "UTF-8"),
        (lambda e: rename_bytes(e / "front", b"fr\xffnt"), "UTF-8"),
    ],
)
def test_a_bad_episode_is_named_and_the_others_survive(own, damage, sentence):
    damage(own / "episode_002")
    episodes, (problem,) = read(own)
    assert list(episodes) == ["episode_000", "episode_001"]
    assert re.search(sentence, problem), problem
    assert problem.startswith(f"{own / 'episode_002'}: ") and problem.isprintable()


@pytest.mark.parametrize("name", [b"\xff", b"a\nb"])
def test_a_bad_name_of_an_episode_is_a_sentence(own, name):
    rename_bytes(own / "episode_002", name)
    episodes, (problem,) = read(own)
    assert list(episodes) == ["episode_000", "episode_001"] and "unsafe" in problem
    problem.encode()


def test_loops_of_links_and_pipes_in_the_root(own):
    (own / "loop").symlink_to("loop")
    (own / "up").symlink_to("..")
    os.mkfifo(own / "pipe")
    episodes, problems = read(own)
    assert len(episodes) == 3 and len(problems) == 2
    assert "links" in problems[0] and "other_data.pkl is missing" in problems[1]


def test_random_pickles_are_sentences(own):
    """Whatever a damaged pickle holds, it is one sentence."""
    path = own / "episode_002" / OTHER_DATA
    sound = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(sound)
        for position in generator.integers(0, len(sound), 3):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        episodes, problems = read(own)
        assert len(episodes) + len(problems) == 3 and {"episode_000", "episode_001"} <= set(
            episodes
        )


def test_folders_without_pickles_are_no_tree(tmp_path):
    (tmp_path / "photos" / "front").mkdir(parents=True)
    (tmp_path / "photos" / "front" / "0.png").write_bytes(io.BytesIO().getvalue())
    assert not TreeSource.recognises(tmp_path)
