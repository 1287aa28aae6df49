"""Inspection: its numbers, flaws made on purpose, its picture and its script."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcr.data.frames import FrameReader
from mcr.data.index import open_index
from mcr.data.inspection import inspect_dataset
from mcr.data.inspection_picture import compose_figure, draw_inspection
from mcr.data.inspection_report import DROID_ACTION, describe
from mcr.data.inspection_signals import IDLE_SPEED

SCRIPT = Path(__file__).parents[2] / "scripts" / "inspect_dataset.py"


@pytest.fixture(scope="module")
def index(tmp_path_factory, reference):
    return open_index(reference, tmp_path_factory.mktemp("inspection") / "index", workers=1)


@pytest.fixture(scope="module")
def found(index):
    return inspect_dataset(index)


@pytest.fixture
def change_signals(shards):
    """change_signals(function of (signals, index)) -> inspection of shards whose index it edited"""

    def change(edit):
        index = open_index(shards, workers=1)
        signals = np.memmap(index.path / "signals.f32", np.float32, "r+", shape=index.signals.shape)
        edit(signals, index)
        signals.flush()
        return inspect_dataset(open_index(index.path))

    return change


def dimension(found, name):
    return next(d for d in found.dimensions if d.name == name)


def test_the_report_states_the_facts(index, found):
    report = describe(found)
    for fact in (
        "(rlds)",
        index.fingerprint,
        "4 episodes, 163 steps, 10.9 seconds at 15 Hz",
        "exterior_image_1_left: 180 x 320\n",
        "exterior_image_2_left: 180 x 320\n",
        "wrist_image_left: 180 x 320; not used by default",
        "10.6 MB in 2 files",
        "32 .. 45 steps, median 43; 1 (25%) shorter than 40",
        "success 4 (100%)",
        "none 1 (25%), any 3 (75%), all 3 3 (75%); 9 different",
        f"{DROID_ACTION} of action_dict (largest difference 0)",
        "left out: nothing",
    ):
        assert fact in report


def test_numbers_are_those_of_the_data(index, found):
    values = np.asarray(index.signals[:, index.columns(("joint_position",))[2]], np.float64)
    d = dimension(found, "joint_position[2]")
    assert (d.minimum, d.maximum) == (values.min(), values.max())
    assert (d.mean, d.std) == pytest.approx((values.mean(), values.std()))
    assert (d.low, d.high) == pytest.approx(np.quantile(values, [0.01, 0.99]).tolist())
    assert d.counts.sum() == ((values >= d.edges[0]) & (values <= d.edges[-1])).sum() > 150
    assert len(found.dimensions) == index.info["num_signals"]


def test_a_tree_is_described_as_the_shards_it_came_from(tree, found):
    from_tree = inspect_dataset(open_index(tree, workers=1))
    topics = ("size", "cameras", "lengths", "outcomes", "labs", "language", "action")

    def shared(inspection):
        return [line for line in describe(inspection).splitlines() if line.startswith(topics)]

    assert shared(from_tree) == shared(found) and len(shared(found)) > len(topics)
    size = sum(path.stat().st_size for path in tree.rglob("*.png")) / 1e6
    assert from_tree.disk == f"{size:.3g} MB of pictures in 4 folders"


def test_flaws_of_signals_are_named(change_signals):
    def edit(signals, index):
        x, y, z, roll = index.columns(("cartesian_position",))[:4]
        signals[[3, 40], x] = np.nan, np.inf
        signals[:, y] = 0.25
        signals[:, z] = np.nan
        signals[:, roll] = 3.1
        signals[index.starts[1] + 5 : index.starts[1] + 9, roll] = -3.1  # there and back
        signals[index.starts[2] :][: index.lengths[2], roll] = -3.1  # all of an episode: no jump

    found = change_signals(edit)
    assert dimension(found, "cartesian_position[0]").remarks == ["2 not finite"]
    assert dimension(found, "cartesian_position[1]").remarks == ["constant"]
    assert dimension(found, "cartesian_position[2]").remarks == ["163 not finite"]
    assert dimension(found, "cartesian_position[3]").remarks == ["reaches +-pi, 2 jumps across"]
    assert dimension(found, "cartesian_position[4]").remarks == []
    assert "2 not finite" in describe(found)


def test_the_report_says_how_an_action_differs_from_droids(change_signals):
    def edit(signals, index):
        velocity = index.columns(("action_dict/joint_velocity",))
        arm, gripper = index.columns(("action",))[:-1], index.columns(("action",))[-1:]
        signals[:, arm] = signals[:, index.columns(("action_dict/cartesian_velocity",))]
        signals[:, gripper] = signals[:, index.columns(("action_dict/gripper_velocity",))]
        signals[:, velocity] = 0
        signals[7, gripper] += 0.5

    found = change_signals(edit)
    nearest = next(iter(found.action_means))
    assert nearest == "cartesian_velocity + gripper_velocity"
    assert found.action_means[nearest] == pytest.approx((0.5, 1 / 163))
    assert f"not {DROID_ACTION} of action_dict" in describe(found)
    assert f"nearest to it: {nearest}" in describe(found)


def test_idle_is_the_share_of_steps_in_which_nothing_moves(change_signals):
    def edit(signals, index):
        moving = index.columns(("joint_position", "gripper_position"))
        joint, gripper = moving[0], moving[-1]
        signals[:, moving] = 0
        steps = np.arange(len(signals))
        signals[:, joint] = steps * 0.5 * IDLE_SPEED / index.schema.hz  # slower than the threshold
        start = index.starts[0]
        signals[start + 10 :, joint] += 1.0  # one fast step, of the arm
        signals[start + 20 : start + 21, gripper] = 1.0  # two of the gripper: open and shut

    num_pairs = 163 - 4
    found = change_signals(edit)
    assert found.idle == pytest.approx(1 - 3 / num_pairs)


def test_whole_random_episodes_are_read_if_there_are_too_many_steps(index):
    some = inspect_dataset(index, seed=3, max_steps=100)
    assert (some.num_episodes, some.num_steps) in {(2, 32 + 41), (2, 32 + 45), (2, 86), (2, 90)}
    assert f"over {some.num_steps} steps of 2 random episodes" in describe(some)
    assert describe(some) == describe(inspect_dataset(index, seed=3, max_steps=100))
    assert inspect_dataset(index, max_steps=1).num_episodes == 1
    drawn = {inspect_dataset(index, seed, max_steps=100).num_steps for seed in range(8)}
    assert len(drawn) > 1


def test_picture_holds_all_actions_and_the_frames_themselves(index, found, tmp_path):
    figure = compose_figure(found)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == ["lengths: 1 shorter than 40", "labs", "language"]
    assert titles[3:10] == [f"action[{number}]" for number in range(7)]
    assert all(axes.patches for axes in figure.axes[:10])  # each has its bars
    assert sum(bar.get_width() for bar in figure.axes[1].patches) == len(index)

    sheet = figure.axes[10].images[0].get_array()
    last = FrameReader(index).read(3, 2, int(index.lengths[3]) - 1)
    assert np.array_equal(sheet[-180:, -320:], last)  # the last row, camera and step

    draw_inspection(found, tmp_path / "dataset.png")
    with Image.open(tmp_path / "dataset.png") as image:
        assert image.width == 14 * 110 and 900 < image.height < 1500
        assert len(image.convert("RGB").getcolors(2**24)) > 10_000  # photographs, not an empty page


def test_an_unreadable_frame_is_reported_and_marked(shards):
    index = open_index(shards, workers=1)
    position = int(index.starts[0])
    shard = index.source / index.files[index.frame_files[0, 1]].decode()
    with shard.open("r+b") as file:
        file.seek(index.frame_places[1][0][position])
        file.write(bytes(1000))
    found = inspect_dataset(index)
    assert len(found.unreadable) == 1
    assert "exterior_image_2_left, step 0" in found.unreadable[0]
    assert "unreadable frames: 1 of 36 tried" in describe(found)
    texts = [text.get_text() for text in compose_figure(found).axes[-1].texts]
    assert texts.count("unreadable") == 1


def test_script_reports_and_draws_then_again_from_the_index(shards, capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return stopped.value.code, capsys.readouterr()

    code, printed = run(shards, "--index", shards.parent / "table")
    assert code == 0 and "4 episodes, 163 steps" in printed.out
    assert (shards.parent / "table" / "dataset.png").is_file()

    code, printed = run(shards.parent / "table", "--out", shards.parent / "picture.png")
    assert code == 0 and f"{shards} (rlds)" in printed.out
    assert (shards.parent / "picture.png").is_file()

    (shards.parent / "empty").mkdir()
    for arguments, complaint in (
        ([shards.parent / "nothing"], "no such file or folder"),
        ([shards.parent / "empty"], "holds no data set of a known format"),
        ([shards, "--out", "picture.jpg"], "give the name of a .png file"),
        ([shards, "--seed", "-1"], "argument --seed: -1 must be a whole number of at least 0"),
        ([shards.parent / "table", "--index", shards.parent], "is an index itself"),
    ):
        code, printed = run(*arguments)
        assert code == 2 and printed.out == "" and complaint in printed.err
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
