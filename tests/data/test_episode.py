import io
import itertools
import os
import pickle
import random

import numpy as np
import pytest

from mcr.data.droid import RldsDataset
from mcr.data.episode import (
    LANGUAGES,
    OTHER_DATA,
    Origin,
    other_data,
    read_other_data,
    unique_names,
    write_episode,
)
from mcr.errors import UserError


@pytest.fixture(scope="module")
def episode(reference):
    dataset = RldsDataset.open(reference)
    return dataset.parse(next(dataset.records(dataset.shards[0])))


# --------------------------------------------------------------------------- names


def test_origin_of_a_droid_path(file_path):
    origin = Origin.parse(file_path(23))
    assert (origin.lab, origin.outcome, origin.date) == ("AUTOLab", "success", "2023-07-07")
    assert origin.name == "2023-07-07_Fri_Jul__7_09_42_23_2023"
    assert origin.session == "AUTOLab/2023-07-07"
    assert Origin.parse("2023-07-07/Fri/trajectory.h5").outcome == ""


def test_one_recording_keeps_its_short_name(file_path):
    assert unique_names([file_path(1), file_path(2)]) == [
        "2023-07-07_Fri_Jul__7_09_42_01_2023",
        "2023-07-07_Fri_Jul__7_09_42_02_2023",
    ]


def test_the_same_second_in_two_labs_is_told_apart_by_lab(file_path):
    names = unique_names([file_path(1, "AUTOLab"), file_path(2), file_path(1, "IRIS")])
    assert names == [
        "2023-07-07_Fri_Jul__7_09_42_01_2023_AUTOLab",
        "2023-07-07_Fri_Jul__7_09_42_02_2023",
        "2023-07-07_Fri_Jul__7_09_42_01_2023_IRIS",
    ]


def test_unusable_paths_have_no_name(file_path):
    assert unique_names(["../../x/t.h5", file_path(1), ""])[::2] == ["", ""]


def test_no_name_is_given_twice_whatever_the_paths():
    """Parts chosen so that a lab or a counter runs into another recording's own name."""
    draw = random.Random(0)
    recordings = ["x", "X", "x_2", "x_3", "x_lab", "x_lab_2", "x:2"]
    labs = ["lab", "2", "no lab!", "L" * 300, ""]
    for _ in range(300):
        paths = [
            f"{draw.choice(labs)}/success/day/{draw.choice(recordings)}/t.h5"
            for _ in range(draw.randint(1, 12))
        ]
        names = unique_names(paths)
        assert len({name.casefold() for name in names}) == len(paths)
        assert all(len(name) < 250 for name in names)
        for name, path in zip(names, paths, strict=True):
            assert name.startswith(Origin.parse(path).name)


# --------------------------------------------------------------------------- writing


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
def test_nothing_is_left_of_an_episode_that_fails(tmp_path, episode, error):
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


def test_what_a_killed_run_left_is_replaced(tmp_path, episode):
    (tmp_path / ".partial-x" / "wrist_image_left").mkdir(parents=True)
    (tmp_path / ".partial-x" / "wrist_image_left" / "99.jpg").write_bytes(b"old")
    write(tmp_path, episode)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert len(list((tmp_path / "x" / "wrist_image_left").iterdir())) == 41


# --------------------------------------------------------------------------- reading


def read_bytes(tmp_path, raw: bytes):
    (tmp_path / OTHER_DATA).write_bytes(raw)
    return read_other_data(tmp_path / OTHER_DATA)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_upstreams_pickles_are_read(tmp_path, episode, protocol):
    """Plain pickles of NumPy values, of any protocol, by NumPy 2 and, renamed, by NumPy 1."""
    data = other_data(episode) | {"discount": [np.float32(1.0)] * 41, "is_first": [np.True_] * 41}
    raw = pickle.dumps(data, protocol)
    read = read_bytes(tmp_path, raw)
    np.testing.assert_array_equal(read["action"], data["action"])
    assert read["is_first"] == data["is_first"] and read["discount"] == data["discount"]


def test_pickles_of_numpy_1_are_read(tmp_path, episode):
    raw = pickle.dumps({"action": list(episode.signals["action"]), "flag": np.True_}, 2)
    assert b"numpy._core" in raw
    read = read_bytes(tmp_path, raw.replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(read["action"], episode.signals["action"])


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.reduction = function, arguments

    def __reduce__(self):
        return self.reduction


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "call",
    [
        lambda path: Call(os.system, f"touch {path}"),
        lambda path: Call(exec, f"open({str(path)!r}, 'w')"),
        lambda path: Call(open, str(path), "w"),
        lambda path: Call(np.savetxt, str(path), [1]),
        lambda path: Call(getattr, "text", "encode"),
        lambda path: Call(io.FileIO, str(path), "w"),
    ],
)
def test_a_malicious_pickle_executes_nothing(tmp_path, call, protocol):
    victim = tmp_path / "victim"
    raw = pickle.dumps({"action": [call(victim)]}, protocol)
    with pytest.raises(UserError, match="nothing was executed"):
        read_bytes(tmp_path, raw)
    assert not victim.exists()


def test_dotted_names_reach_nothing(tmp_path):
    """Protocol 4 resolves `ndarray.__class__...` attribute by attribute."""
    raw = b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    with pytest.raises(UserError, match="refuses to load"):
        read_bytes(tmp_path, raw)


def test_a_damaged_pickle_is_named(tmp_path, episode):
    raw = pickle.dumps(other_data(episode))
    for size in (0, 1, 100, len(raw) // 2, len(raw) - 1):
        with pytest.raises(UserError, match=f"{OTHER_DATA}: damaged pickle"):
            read_bytes(tmp_path, raw[:size])
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[draw.randrange(len(raw))] = draw.randrange(256)
        try:
            read_bytes(tmp_path, bytes(damaged))
        except UserError as error:
            assert str(tmp_path) in str(error)
    with pytest.raises(UserError, match="holds a list"):
        read_bytes(tmp_path, pickle.dumps([1]))
    with pytest.raises(FileNotFoundError):
        read_other_data(tmp_path / "nowhere.pkl")
