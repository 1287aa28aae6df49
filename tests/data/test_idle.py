"""Idle steps are compared with openpi's rule, written as loops over steps."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from mcr.data.idle import kept_steps, listed_steps, moving_steps
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.other_data import read_other_data
from mcr.data.sampling import SamplingConfig, draw_samples
from mcr.data.selection import SelectionConfig, select_episodes, split_sessions
from mcr.errors import UserError

STILL = {0: [(10, 17), (20, 26)], 1: [(0, 9)], 3: [(5, 30), (33, 41)]}  # row -> steps at rest


@pytest.fixture
def resting(tree):
    """The index of a tree whose episodes rest in STILL, where they repeat the command before."""
    for row, folder in enumerate(sorted(tree.iterdir())):
        data = read_other_data(folder / "other_data.pkl")
        for begin, end in STILL.get(row, ()):
            for step in range(max(begin, 1), end):
                before = data["action_dict"][step - 1]["joint_velocity"]
                data["action_dict"][step]["joint_velocity"] = before + 0.9e-3 * (-1) ** step
        (folder / "other_data.pkl").write_bytes(pickle.dumps(data))
    return open_index(tree)


def per_episode(index, mask):
    return [
        mask[start : start + length].tolist()
        for start, length in zip(index.starts, index.lengths, strict=True)
    ]


def moving_in(velocities, change, num_steps):
    """The rule for one episode, step by step."""
    idle = [False]
    for before, now in zip(velocities[:-1], velocities[1:], strict=True):
        idle.append(all(abs(a - b) < change for a, b in zip(before, now, strict=True)))
    moving = [True] * len(idle)
    for begin in range(len(idle)):
        if all(idle[begin : begin + num_steps]) and begin + num_steps <= len(idle):
            moving[begin : begin + num_steps] = [False] * num_steps
    return moving


@pytest.mark.parametrize(
    ("change", "num_steps"), [(1e-3, 7), (1e-3, 6), (1e-3, 1), (0.3, 2), (9.0, 3)]
)
def test_idle_steps_follow_the_rule(resting, change, num_steps):
    columns = resting.columns(("action_dict/joint_velocity",))
    got = per_episode(resting, moving_steps(resting, change, num_steps))
    for row, moving in enumerate(got):
        velocities = resting.signals[resting.starts[row] :][: resting.lengths[row], columns]
        assert moving == moving_in(velocities, change, num_steps), row


def test_only_long_rests_are_dropped(resting):
    idle = [
        np.flatnonzero(~np.array(m)) for m in per_episode(resting, moving_steps(resting, 1e-3, 7))
    ]
    assert [steps.tolist() for steps in idle] == [
        list(range(10, 17)),
        list(range(1, 9)),  # nothing comes before step 0
        [],
        [*range(5, 30), *range(33, 41)],
    ]


def test_chunks_do_not_matter(resting, monkeypatch):
    whole = moving_steps(resting, 0.3, 2)
    monkeypatch.setattr("mcr.data.idle._CHUNK", 13)
    assert np.array_equal(moving_steps(resting, 0.3, 2), whole)


def test_wrong_idle_options_are_refused(tree):
    for options in ({"idle_change": 0.0}, {"idle_steps": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            select_episodes(open_index(tree), SelectionConfig(idle="drop", **options))


def test_a_robot_without_joint_velocities_is_refused(tree):
    for path in tree.glob("*/other_data.pkl"):
        data = read_other_data(path)
        del data["action_dict"]
        path.write_bytes(pickle.dumps(data))
    with pytest.raises(UserError, match="joint_velocity' for data.selection.idle=drop; it has act"):
        select_episodes(open_index(tree), SelectionConfig(idle="drop"))


# --------------------------------------------------------------------------- a file of ranges


def key_of(path):
    """The key that openpi uses for an episode."""
    return f"{path.replace('trajectory.h5', 'recordings/MP4')}--{path}"


@pytest.fixture
def write_ranges(tmp_path):
    def write(content):
        path = tmp_path / "ranges.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize("bucket", ["gs://xembodiment_data/r2d2/r2d2-data-full", "/elsewhere"])
def test_ranges_are_found_by_path_and_by_name(reference_index, write_ranges, bucket):
    index = reference_index
    paths = [
        f"{bucket}/{path.partition('r2d2-data-full/')[2]}" for path in index.table["file_path"]
    ]
    name = index.table["name"][2]
    path = write_ranges(
        {
            key_of(paths[0]): [[2, 10], [20, 30]],
            key_of(paths[1]): [],
            name: [[0, int(index.lengths[2])]],
            key_of("gs://b/r2d2-data-full/LAB/success/2020-01-01/Wed_1/trajectory.h5"): [[0, 1000]],
        }
    )
    mask, found = listed_steps(index, path)
    kept = [np.flatnonzero(steps).tolist() for steps in per_episode(index, mask)]
    assert kept == [[*range(2, 10), *range(20, 30)], [], list(range(index.lengths[2])), []]
    assert found == "2 episodes found in it by path, 1 by name, 1 not"


def test_ranges_are_found_by_name_in_upstreams_tree(tree, reference_index, write_ranges):
    for path in tree.glob("*/other_data.pkl"):
        data = read_other_data(path)
        del data["file_path"]
        path.write_bytes(pickle.dumps(data))
    paths = reference_index.table["file_path"]
    ranges = write_ranges({key_of(path): [[row, 20]] for row, path in enumerate(paths)})
    index = open_index(tree)
    mask, found = listed_steps(index, ranges)
    kept = [np.flatnonzero(steps).tolist() for steps in per_episode(index, mask)]
    assert kept == [list(range(row, 20)) for row in range(4)]
    assert found == "0 episodes found in it by path, 4 by name, 0 not"


def test_an_episode_of_another_lab_is_not_matched(reference_index, write_ranges):
    index = reference_index
    other = index.table["file_path"][0].replace(index.table["lab"][0], "OTHER")
    assert "0 by name, 4 not" in listed_steps(index, write_ranges({key_of(other): [[0, 5]]}))[1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (["a"], "not of the form"),
        ({"a": [1, 2]}, "not of the form"),
        ({"a": [[1, 2.5]]}, "not of the form"),
        ({"NAME": [[3, 1000]]}, "keeps steps 3 to 1000 of .*, which has"),
        ({"NAME": [[-1, 10]]}, "keeps steps -1 to 10"),
    ],
)
def test_wrong_ranges_are_refused(reference_index, write_ranges, content, complaint):
    index = reference_index
    if "NAME" in content:
        content = {index.table["name"][0]: content["NAME"]}
    with pytest.raises(UserError, match=complaint):
        listed_steps(index, write_ranges(content))


def test_a_file_that_is_not_there_is_refused(reference_index, tmp_path):
    with pytest.raises(UserError, match="no readable JSON"):
        listed_steps(reference_index, str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="no readable JSON"):
        listed_steps(reference_index, str(tmp_path / "bad.json"))


# --------------------------------------------------------------------------- the kept timeline


@dataclasses.dataclass
class Layout:
    """Stands for an index: `kept_steps` reads only where episodes lie."""

    starts: np.ndarray
    lengths: np.ndarray
    info: dict

    def __len__(self):
        return len(self.starts)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_ranges_hold_exactly_the_kept_steps_of_each_episode(share, seed):
    """Episodes lie in any order in the file, with steps of left-out episodes between them."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 20, 12)
    places = np.cumsum(sizes) - sizes
    rows = generator.permutation(12)[:8]
    index = Layout(places[rows], sizes[rows], {"total_steps": int(sizes.sum())})
    mask = generator.random(sizes.sum()) < share
    kept = kept_steps(index, mask)
    assert kept.begins.dtype == np.int32
    for row in range(8):
        start = index.starts[row]
        wanted = np.flatnonzero(mask[start : start + index.lengths[row]])
        assert kept.lengths[row] == len(wanted)
        got = kept.real_steps(np.array([row]), np.arange(len(wanted))[None])
        assert got[0].tolist() == wanted.tolist()
    few = kept.of(np.array([5, 2]))
    if few.lengths[1]:
        assert few.real_steps(np.array([1]), np.array([[0]])) == kept.real_steps(
            np.array([2]), np.array([[0]])
        )


def sizes(lengths):
    return np.broadcast_to((180, 320), (len(lengths), 2, 2))


def test_clips_show_kept_steps_and_windows_show_all_steps(resting):
    episodes, report = select_episodes(resting, SelectionConfig(idle="drop", min_frames=10))
    assert report == [
        "all: 4 episodes, 163 frames",
        f"idle=drop: 4 episodes, {163 - 7 - 8 - 25 - 8} frames",
        f"min_frames=10: 3 episodes, {163 - 48 - 8} frames",  # of the last episode 8 are left
    ]
    lengths = np.asarray(resting.lengths)[episodes.rows]
    draw = draw_samples(0, 0, 3000, lengths, sizes(lengths), SamplingConfig(), kept=episodes.kept)
    mask = per_episode(resting, moving_steps(resting, 1e-3, 7))
    for row, steps, windows in zip(
        episodes.rows[draw.episodes], draw.steps, draw.windows, strict=True
    ):
        assert all(mask[row][step] for step in steps)
        assert steps[1] < steps[2] <= steps[3]
        for centre, window in zip(steps[[1, 3]], windows, strict=True):
            first = max(1, centre - 1)
            assert window.tolist() == [min(first + i, resting.lengths[row] - 1) for i in range(3)]
    everything = {
        (row, step) for row, s in zip(draw.episodes, draw.steps, strict=True) for step in s
    }
    kept_of_all = {(p, s) for p, row in enumerate(episodes.rows) for s in np.flatnonzero(mask[row])}
    first_kept = {(p, int(np.flatnonzero(mask[r])[0])) for p, r in enumerate(episodes.rows)}
    assert everything == kept_of_all - first_kept  # the rule never draws the first


def test_drawn_steps_are_steps_of_the_kept_timeline(resting):
    """Kept steps are drawn like the steps of an episode of that length, and then looked up."""
    episodes, _ = select_episodes(resting, SelectionConfig(idle="drop", min_frames=3))
    lengths = np.asarray(resting.lengths)[episodes.rows]
    options = (sizes(lengths), SamplingConfig())
    draw = draw_samples(5, 7, 100, lengths, *options, kept=episodes.kept)
    short = draw_samples(5, 7, 100, episodes.kept.lengths, *options)
    mask = per_episode(resting, moving_steps(resting, 1e-3, 7))
    kept = [np.flatnonzero(mask[row]) for row in episodes.rows]
    wanted = [kept[e][steps] for e, steps in zip(short.episodes, short.steps, strict=True)]
    assert np.array_equal(draw.steps, wanted)
    assert np.array_equal(draw.crops, short.crops) and np.array_equal(draw.cameras, short.cameras)


def test_without_idle_steps_to_drop_the_stream_is_the_same(reference_index):
    index = reference_index
    batches = []
    for idle in ("keep", "drop"):
        config = DataConfig(workers=0)
        selection = SelectionConfig(idle=idle, idle_steps=1000, min_frames=3)
        clips = ClipDataset(index, select_episodes(index, selection)[0], config, seed=0)
        batches.append(next(iter(ClipLoader(clips, config, 4))))
    assert_same(*batches)


def assert_same(a, b):
    for field in dataclasses.fields(a):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


@pytest.mark.parametrize("workers", [1, 2])
def test_the_filtered_stream_does_not_depend_on_workers(resting, workers):
    selection = SelectionConfig(idle="drop", min_frames=3)
    episodes, _ = select_episodes(resting, selection)

    def batches(workers, first=0, count=4):
        config = DataConfig(workers=workers, selection=selection)
        clips = ClipDataset(resting, episodes, config, seed=0)
        loader = iter(ClipLoader(clips, config, 4, first_sample=first))
        return [next(loader) for _ in range(count)]

    expected = batches(0)
    for a, b in zip(expected, batches(workers), strict=True):
        assert_same(a, b)
    assert_same(batches(0, first=8, count=1)[0], expected[2])


def test_a_split_keeps_each_episodes_steps(resting):
    episodes, _ = select_episodes(resting, SelectionConfig(idle="drop", min_frames=3))
    sides = split_sessions(resting, episodes, 0.3)
    assert all(len(side) for side in sides)
    wanted = dict(zip(episodes.rows, episodes.kept.lengths, strict=True))
    for side in sides:
        assert [wanted[row] for row in side.rows] == side.kept.lengths.tolist()
