"""Each defect is made alone in a tree of otherwise sound episodes."""

import csv
import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mcr
from mcr.data import pictures
from mcr.data.clean import delete, judge, quarantine, report
from mcr.data.clean_facts import inspect_episode
from mcr.data.clean_rules import RULES, expect
from mcr.data.other_data import OTHER_DATA, read_other_data
from mcr.data.schema import LANGUAGES
from mcr.data.sources.rlds import RldsSource
from mcr.data.tf_example import encode_example
from mcr.data.tfrecord import Record
from mcr.errors import UserError
from tests.episodes import EXTERIOR_CAMERAS, write_folder
from tests.waiting import PATIENCE_S

SCRIPT = Path(__file__).parents[2] / "scripts" / "delete_short_videos.py"
LENGTH = 6
CAMERA, OTHER_CAMERA = EXTERIOR_CAMERAS


@pytest.fixture(scope="module")
def write_short_episode(reference, make_features, file_path):
    """write_short_episode(root, second, encode, suffix) writes LENGTH frames of two cameras."""
    layout = RldsSource(reference).parts()[0].layout

    def write(root: Path, second: int, encode, suffix: str) -> None:
        payload = encode_example(make_features(LENGTH, file_path(second)))
        episode = layout.parse(Record(root, 0, payload), "0", "unnamed", "train")
        write_folder(root, episode.origin.name, episode, EXTERIOR_CAMERAS, encode, suffix)

    return write


@pytest.fixture(scope="module")
def sound_once(write_short_episode, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    for second in range(3):
        write_short_episode(root, second, to_png, ".png")
    return root


def to_png(data: memoryview) -> bytes:
    return pictures.encode_png(pictures.decode(data))


@pytest.fixture
def sound(sound_once, tmp_path) -> Path:
    """Three episodes of six frames. They break only the rule on length."""
    return shutil.copytree(sound_once, tmp_path / "sound")


def rejected(
    root: Path, min_frames: int = LENGTH, min_words: int = 2, cameras=None, quick: bool = False
) -> dict[str, dict[str, str]]:
    """Episode -> rule -> reason of the rejected episodes. Like `report`, but in this process."""
    facts = [inspect_episode(folder, quick) for folder in sorted(root.iterdir())]
    expected = expect(facts, min_frames, min_words, cameras)
    findings = [judge(f, expected) for f in facts]
    return {found.facts.name: found.reasons for found in findings if found.reasons}


def change_data(episode: Path, change) -> None:
    data = read_other_data(episode / OTHER_DATA)
    data = change(data) or data
    (episode / OTHER_DATA).write_bytes(pickle.dumps(data))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def resize(path: Path) -> None:
    path.write_bytes(pictures.encode_png(np.zeros((90, 160, 3), np.uint8)))


def resize_all(folder: Path) -> None:
    for path in folder.iterdir():
        resize(path)


def set_row(data: dict, key: str, row, value) -> None:
    data[key] = list(data[key])
    data[key][row] = value


# What is done to one episode, the one rule that must reject it, and a part of the reason.
DEFECTS = {
    "a camera is missing": (lambda e: shutil.rmtree(e / CAMERA), "missing_camera", CAMERA),
    "a camera too many": (
        lambda e: shutil.copytree(e / CAMERA, e / "wrist_image_left"),
        "extra_camera",
        "wrist_image_left",
    ),
    "an empty camera": (
        lambda e: [shutil.rmtree(e / CAMERA), (e / CAMERA).mkdir()],
        ("unequal_cameras", "too_short"),
        f"{CAMERA} has 0 frames",
    ),
    "frames missing in the middle of both cameras": (
        lambda e: [(e / v / "2.png").unlink() for v in (CAMERA, OTHER_CAMERA)],
        ("missing_frames", "wrong_length", "too_short"),
        "1 frame is missing, the first is 2",
    ),
    "a second camera of half the length": (
        lambda e: [(e / OTHER_CAMERA / f"{step}.png").unlink() for step in (3, 4, 5)],
        ("unequal_cameras", "too_short"),
        f"{OTHER_CAMERA} has 3 frames",
    ),
    "a file that is no frame": (
        lambda e: (e / CAMERA / "Thumbs.db").write_bytes(b"x"),
        "missing_frames",
        "Thumbs.db is no frame",
    ),
    "a frame twice": (
        lambda e: shutil.copy(e / CAMERA / "3.png", e / CAMERA / "3.jpg"),
        "missing_frames",
        "3.jpg and 3.png have the same number",
    ),
    "a truncated picture": (
        lambda e: cut(e / CAMERA / "3.png", 5000),
        "damaged_picture",
        "frame 3",
    ),
    "an empty picture": (
        lambda e: cut(e / OTHER_CAMERA / "0.png", 0),
        "damaged_picture",
        "frame 0",
    ),
    "a folder for a picture": (
        lambda e: [(e / CAMERA / "4.png").unlink(), (e / CAMERA / "4.png").mkdir()],
        "damaged_picture",
        "frame 4",
    ),
    "a picture of another size": (
        lambda e: resize(e / CAMERA / "5.png"),
        "damaged_picture",
        "frame 5 is 90 x 160, not 180 x 320",
    ),
    "a camera of another size": (
        lambda e: resize_all(e / CAMERA),
        "wrong_picture_size",
        f"{CAMERA} is 90 x 160, 180 x 320 in most",
    ),
    "no pickle": (lambda e: (e / OTHER_DATA).unlink(), "unreadable_data", "missing"),
    "a truncated pickle": (lambda e: cut(e / OTHER_DATA, 500), "unreadable_data", "damaged"),
    "an empty pickle": (lambda e: cut(e / OTHER_DATA, 0), "unreadable_data", "damaged"),
    "a pickle of something else": (
        lambda e: (e / OTHER_DATA).write_bytes(pickle.dumps([1])),
        "unreadable_data",
        "holds a list",
    ),
    "a pickle with fewer rows": (
        lambda e: change_data(e, lambda d: {k: v[:2] for k, v in d.items()}),
        "wrong_length",
        "rows for 6 frames: cartesian_position 2",
    ),
    "one signal of another length": (
        lambda e: change_data(e, lambda d: d["action"].append(d["action"][0])),
        "wrong_length",
        "rows for 6 frames: action 7",
    ),
    "a command missing in one step": (
        lambda e: change_data(e, lambda d: d["action_dict"][1].pop("joint_velocity")[:0].any()),
        "wrong_length",
        "action_dict/joint_velocity 5",
    ),
    "no action": (
        lambda e: change_data(e, lambda d: d.pop("action")[0:0]),
        "missing_keys",
        "action",
    ),
    "an empty signal": (
        lambda e: change_data(e, lambda d: d.update(action=[])),
        ("wrong_length", "wrong_dimensions"),
        "action 0",
    ),
    "None for an action": (
        lambda e: change_data(e, lambda d: d.update(action=None)),
        "missing_keys",
        "no action",
    ),
    "None for some actions": (
        lambda e: change_data(e, lambda d: set_row(d, "action", 2, None)),
        "wrong_dimensions",
        "action: rows of different sizes",
    ),
    "a row of another width": (
        lambda e: change_data(e, lambda d: set_row(d, "action", 2, np.zeros(5))),
        "wrong_dimensions",
        "action: rows of different sizes",
    ),
    "an episode of another width": (
        lambda e: change_data(e, lambda d: d.update(action=[np.zeros(10)] * LENGTH)),
        "wrong_dimensions",
        "action has 10 numbers a row, 7 in most",
    ),
    "a NaN": (
        lambda e: change_data(e, lambda d: set_row(d, "action", 2, np.full(7, np.nan))),
        "not_finite",
        "action",
    ),
    "an infinite command": (
        lambda e: change_data(
            e, lambda d: d["action_dict"][1].update(joint_velocity=np.full(7, -np.inf))
        ),
        "not_finite",
        "action_dict/joint_velocity",
    ),
    "no instruction": (
        lambda e: [(e / key / "0.txt").write_text("") for key in LANGUAGES],
        "short_instruction",
        "0 words of 2",
    ),
    "no instruction files": (
        lambda e: [shutil.rmtree(e / key) for key in LANGUAGES],
        "short_instruction",
        "0 words of 2",
    ),
    "instructions of one word": (
        lambda e: [(e / key / "0.txt").write_text("push") for key in LANGUAGES],
        "short_instruction",
        "1 words of 2",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_rejected_for_what_it_is(sound, defect):
    change, rules, reason = DEFECTS[defect]
    victim = sorted(sound.iterdir())[1]
    change(victim)
    found = rejected(sound)
    assert list(found) == [victim.name]
    assert set(found[victim.name]) == ({rules} if isinstance(rules, str) else set(rules))
    assert reason in "; ".join(found[victim.name].values())


def test_every_rule_has_a_defect_that_shows_it():
    shown = {rule for _, rules, _ in DEFECTS.values() for rule in np.atleast_1d(rules)}
    assert shown == {rule.__name__ for rule in RULES}


def test_sound_episodes_break_no_rule(sound):
    assert rejected(sound) == {}
    assert rejected(sound, min_frames=LENGTH + 1).keys() == {path.name for path in sound.iterdir()}
    assert all(
        list(reasons) == ["too_short"] for reasons in rejected(sound, min_frames=40).values()
    )


def test_the_thresholds_are_applied(sound):
    for key in LANGUAGES:
        (min(sound.iterdir()) / key / "0.txt").write_text("")
    (min(sound.iterdir()) / LANGUAGES[2] / "0.txt").write_text("one two three")
    assert rejected(sound, min_words=3).keys() <= {p.name for p in sorted(sound.iterdir())[1:]}
    assert min(sound.iterdir()).name in rejected(sound, min_words=4)
    assert rejected(sound, min_words=0) == {}


def test_cameras_are_those_of_most_episodes_or_those_asked_for(sound, tmp_path):
    assert report(sound, workers=1).expected.cameras == (CAMERA, OTHER_CAMERA)
    assert all("extra_camera" in reasons for reasons in rejected(sound, cameras=(CAMERA,)).values())
    with pytest.raises(UserError, match="did you mean"):
        report(sound, cameras=("exterior_image_1",), workers=1)


def test_quick_checks_only_both_ends_of_a_picture(sound):
    picture = min(sound.iterdir()) / CAMERA / "2.png"
    data = bytearray(picture.read_bytes())
    data[len(data) // 2] ^= 0xFF
    picture.write_bytes(data)
    assert "damaged_picture" in rejected(sound)[picture.parts[-3]]
    assert rejected(sound, quick=True) == {}
    cut(picture, len(data) - 1)
    assert "damaged_picture" in rejected(sound, quick=True)[picture.parts[-3]]


def test_trees_of_upstreams_script_are_accepted(sound):
    """Names with ':', RGBA pictures, plain pickles by NumPy 1 without our extra keys."""
    for folder in list(sound.iterdir()):
        for path in folder.rglob("*.png"):
            Image.open(path).convert("RGBA").save(path)
        data = read_other_data(folder / OTHER_DATA)
        for key in ("lab", "outcome", "file_path", "reward"):
            del data[key]
        data["is_first"] = [np.bool_(flag) for flag in data["is_first"]]
        raw = pickle.dumps(data, 2).replace(b"numpy._core", b"numpy.core")
        (folder / OTHER_DATA).write_bytes(raw)
        folder.rename(folder.with_name(folder.name.replace("09_42_0", "09:42:0")))
    assert rejected(sound) == {}


def test_trees_of_upstream_whose_discount_is_none_are_accepted(sound):
    for folder in sound.iterdir():
        change_data(folder, lambda d: d.update(discount=None))
    assert rejected(sound) == {}
    for folder in sound.iterdir():
        change_data(folder, lambda d: d.update(discount=[None] * LENGTH))
    assert rejected(sound) == {}


def test_a_tree_of_another_robot_is_accepted(tmp_path):
    """No cartesian_position, no language, no file_path; cameras of any name; other frame names."""
    generator = np.random.default_rng(0)
    for number in range(3):
        length = 5 + number
        mcr.write_episode(
            tmp_path / "own",
            f"episode_{number:03d}",
            frames={
                "front": generator.integers(0, 256, (length, 24, 32, 3), dtype=np.uint8),
                "hand": generator.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8),
            },
            state=generator.normal(size=(length, 9)),
            action=generator.normal(size=(length, 10)),
        )
    for path in (tmp_path / "own").glob("*/hand/*.png"):
        path.rename(path.with_name(f"{int(path.stem) + 1:06d}.PNG"))
    (tmp_path / "own" / "episode_000" / "calibration").mkdir()
    (tmp_path / "own" / "episode_000" / "calibration" / "hand_eye.txt").write_text("1 0 0 0")
    found = report(tmp_path / "own", workers=1)
    assert found.rejected == [] and found.expected.cameras == ("front", "hand")
    assert found.expected.min_frames == 3


def test_droids_threshold_is_that_of_its_schema(sound):
    found = report(sound, workers=1)
    assert found.expected.min_frames == 40 and len(found.rejected) == 3


def test_jpeg_trees_are_accepted(write_short_episode, tmp_path):
    (tmp_path / "tree").mkdir()
    write_short_episode(tmp_path / "tree", 1, bytes, ".jpg")
    assert rejected(tmp_path / "tree") == rejected(tmp_path / "tree", quick=True) == {}
    victim = next((tmp_path / "tree").rglob("3.jpg"))
    cut(victim, 9000)
    for quick in (False, True):
        assert "damaged_picture" in rejected(tmp_path / "tree", quick=quick)[victim.parts[-3]]


class Call:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_rejected_and_not_executed(sound, tmp_path):
    victim = min(sound.iterdir())
    (victim / OTHER_DATA).write_bytes(pickle.dumps({"action": Call(tmp_path / "executed")}))
    assert "nothing was executed" in rejected(sound)[victim.name]["unreadable_data"]
    assert not (tmp_path / "executed").exists()


def test_strays_are_named_and_left_alone(sound, tmp_path):
    (sound / "notes.txt").write_text("mine")
    (sound / "photos").mkdir()
    (sound / "photos" / "holiday.jpg").write_bytes(b"x")
    (sound / ".partial-2023").mkdir()
    (sound / "upstreams_empty_leftover").mkdir()
    found = report(sound, min_frames=LENGTH, workers=1)
    assert found.rejected == [sound / "upstreams_empty_leftover"]
    assert "2 entries are no episodes: notes.txt, photos" in str(found)
    assert "1 folders of an extraction at work or killed" in str(found)
    delete(found.rejected)
    left = sorted(p.name for p in sound.iterdir() if not p.name.startswith("2023"))
    assert left == [".partial-2023", "notes.txt", "photos"]


# --------------------------------------------------------------------------- acting on it


def test_quarantine_moves_and_never_overwrites(sound, tmp_path):
    first, second, third = sorted(sound.iterdir())
    size = sum(path.is_file() for path in first.rglob("*"))
    quarantine([first], tmp_path / "away")
    assert not first.exists()
    assert sum(path.is_file() for path in (tmp_path / "away" / first.name).rglob("*")) == size
    (tmp_path / "away" / third.name).mkdir()
    with pytest.raises(UserError, match=rf"{third.name} exists"):
        quarantine([second, third], tmp_path / "away")
    assert second.exists() and third.exists()  # all or nothing
    for inside in (sound, sound / "bad"):
        with pytest.raises(UserError, match="outside the tree"):
            quarantine([second], inside)


def test_quarantine_across_file_systems(sound, tmp_path, monkeypatch):
    """Only the error of renaming across devices is imitated."""
    rename = os.rename
    away = tmp_path / "away"

    def refuse(source, target, **options):
        if Path(source).parent == sound and Path(target).parent == away:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse)
    first = min(sound.iterdir())
    files = {path.relative_to(first): path.read_bytes() for path in first.rglob("*.*")}
    quarantine([first], away)
    moved = away / first.name
    assert {path.relative_to(moved): path.read_bytes() for path in moved.rglob("*.*")} == files
    assert not first.exists() and len(list(sound.iterdir())) == 2
    assert [path.name for path in away.iterdir()] == [first.name]


def test_delete_removes_a_link_but_not_its_target(sound, tmp_path):
    first, second, _ = sorted(sound.iterdir())
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    delete([first, second])
    assert len(list(sound.iterdir())) == 1
    assert (tmp_path / "elsewhere" / OTHER_DATA).exists()


def script(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def test_the_script_reports_then_moves_then_deletes(sound, tmp_path):
    first, second, third = sorted(sound.iterdir())
    shutil.rmtree(first / CAMERA)
    cut(second / OTHER_CAMERA / "1.png", 99)
    before = sorted(sound.rglob("*"))

    result = script(sound, "--min-frames", LENGTH)
    assert result.returncode == 0, result.stderr
    assert "1 missing camera\n" in result.stdout and "1 damaged picture\n" in result.stdout
    assert "2 episodes break a rule" in result.stdout and "1 of 3 are fine" in result.stdout
    assert "nothing was changed" in result.stdout
    assert sorted(sound.rglob("*")) == before
    with (tmp_path / "sound.report.csv").open(newline="") as file:
        rows = {row["episode"]: row for row in csv.DictReader(file)}
    assert rows[first.name]["missing_camera"] == f"no {CAMERA}"
    assert rows[second.name]["damaged_picture"].startswith(f"{OTHER_CAMERA}: frame 1: ")
    assert [rows[p.name]["verdict"] for p in (first, second, third)] == ["reject"] * 2 + ["keep"]
    assert rows[third.name]["frames"] == str(LENGTH)

    result = script(sound, "--min-frames", LENGTH, "--quarantine", tmp_path / "away")
    assert result.returncode == 0 and "moved 2 episodes" in result.stdout
    assert {p.name for p in (tmp_path / "away").iterdir()} == {first.name, second.name}
    assert list(sound.iterdir()) == [third]

    result = script(sound, "--delete", "--report", tmp_path / "table.csv")  # 40 frames: too short
    assert result.returncode == 0 and "deleted 1 episodes" in result.stdout
    assert list(sound.iterdir()) == [] and (tmp_path / "table.csv").exists()


def test_the_script_keeps_episodes_without_language_unless_told_otherwise(sound):
    for path in sound.glob("*/language_instruction*/0.txt"):
        path.write_text("")
    result = script(sound, "--min-frames", LENGTH, "--delete")
    assert result.returncode == 0 and "deleted 0 episodes" in result.stdout
    assert len(list(sound.iterdir())) == 3
    result = script(sound, "--min-frames", LENGTH, "--min-words", 2)
    assert "3 short instruction\n" in result.stdout and "nothing was changed" in result.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "no such folder"),
        ([""], "holds no episode"),
        (["sound", "--workers", "0"], "argument --workers: 0 must be"),
        (["sound", "--quarantine", "a", "--delete"], "not allowed with"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    (tmp_path / "sound" / "an_episode").mkdir(parents=True)
    (tmp_path / "sound" / "an_episode" / OTHER_DATA).write_bytes(b"")
    root, *rest = arguments
    if root == "":
        shutil.rmtree(tmp_path / "sound" / "an_episode")
        root = "sound"
    result = script(tmp_path / root, *rest)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
