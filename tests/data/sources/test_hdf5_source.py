"""HDF5 files as h5py writes them -> episodes, signals and frames; bad ones are named."""

from __future__ import annotations

import io
import json
import os
import pickle
import re

import h5py
import numpy as np
import pytest
from PIL import Image

from mcr.data.schema import Schema
from mcr.data.sources import open_source
from mcr.data.sources.hdf5 import Hdf5Source
from mcr.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (150, 8, 12, 3), dtype=np.uint8)


def write_demo(group, length, seed=0, **options):
    generator = np.random.default_rng(seed)
    group["actions"] = generator.normal(size=(length, 7))
    group["rewards"] = np.zeros(length)
    group["states"] = generator.normal(size=(length, 32))
    group["obs/eef_pos"] = generator.normal(size=(length, 3))
    group["obs/gripper"] = np.arange(length)
    group["obs/object"] = generator.normal(size=(length, 14))
    group["obs/embedding"] = np.zeros((length, 512), np.float32)
    group["next_obs/eef_pos"] = np.ones((length, 3))
    group.create_dataset("obs/front_image", data=FRAMES[:length], **options)
    group["obs/hand_image"] = FRAMES[:length, :4, :6]
    group["obs/front_mask"] = FRAMES[:length, :, :, 0]
    group["next_obs/front_image"] = FRAMES[:length]


@pytest.fixture
def robomimic(tmp_path):
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        for name, length in (("demo_10", 2), ("demo_2", 150), ("demo_0", 5)):
            chunks = (min(40, length), 8, 12, 3)
            group = file.create_group(f"data/{name}")
            write_demo(group, length, chunks=chunks, compression="gzip")
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        file["mask/train"] = np.array(["demo_2", "demo_0"], "S")
        file["mask/valid"] = np.array(["demo_10"], "S")
    return path


def read(source):
    entries = [
        entry for part in source.parts() for entry in pickle.loads(pickle.dumps(part)).episodes()
    ]
    episodes = {e.origin.name: e for e in entries if not isinstance(e, str)}
    return episodes, [e for e in entries if isinstance(e, str)]


def only_problem(path, schema=None):
    episodes, (problem,) = read(Hdf5Source(path, schema))
    return episodes, problem


def encoded(frame, kind):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind)
    return buffer.getvalue()


def test_robomimics_layout(robomimic):
    source = open_source(robomimic)
    assert isinstance(source, Hdf5Source) and source.name == "demos" and source.is_small()
    assert source.schema.hz == 20
    assert source.cameras == {"front_image": "obs/front_image", "hand_image": "obs/hand_image"}
    episodes, problems = read(source)
    assert problems == [] and list(episodes) == ["demo_0", "demo_2", "demo_10"]
    assert [e.origin.split for e in episodes.values()] == ["train", "train", "valid"]
    assert [e.length for e in episodes.values()] == [5, 150, 2]
    assert len({e.origin.session for e in episodes.values()}) == 3
    episode = episodes["demo_2"]
    assert set(episode.signals) == {"actions", "eef_pos", "gripper", "object"}
    assert all(values.dtype == np.float32 for values in episode.signals.values())
    with h5py.File(robomimic) as file:
        expected = file["data/demo_2/obs/eef_pos"][()].astype(np.float32)
    assert np.array_equal(episode.signals["eef_pos"], expected)
    assert {c: p.size for c, p in episode.pictures.items()} == {
        "front_image": (8, 12),
        "hand_image": (4, 6),
    }


@pytest.mark.parametrize("steps", [range(150), [0, 1, 5, 39, 40, 149], [7]])
def test_frames_are_those_of_the_file(robomimic, steps):
    source = Hdf5Source(robomimic)
    episodes, _ = read(source)
    decoder = source.decoder()
    frames = list(decoder.frames(episodes["demo_2"].key, "front_image", steps))
    assert np.array_equal(frames, FRAMES[list(steps)])
    small = decoder.frames(episodes["demo_0"].key, "hand_image", [4])
    assert np.array_equal(next(small), FRAMES[4, :4, :6])
    decoder.close()


def test_only_the_wanted_splits_are_read(robomimic):
    episodes, _ = read(Hdf5Source(robomimic, Schema(splits=("valid",))))
    assert list(episodes) == ["demo_10"]


def test_a_schema_names_further_signals_and_cameras(robomimic):
    schema = Schema.of(
        {"cameras": {"front": "obs/front_image"}, "signals": ["obs/embedding"], "state": ["states"]}
    )
    source = Hdf5Source(robomimic, schema)
    episodes, _ = read(source)
    assert list(episodes["demo_0"].pictures) == ["front"] == list(source.cameras)
    assert episodes["demo_0"].signals["embedding"].shape == (5, 512)
    assert episodes["demo_0"].signals["states"].shape == (5, 32)
    again = Hdf5Source(robomimic, source.schema)
    assert again.schema == source.schema
    frame = next(again.decoder().frames(episodes["demo_0"].key, "front", [3]))
    assert np.array_equal(frame, FRAMES[3])


@pytest.mark.parametrize(
    "schema, sentence",
    [
        ({"cameras": {"front": "obs/frnt_image"}}, "did you mean 'obs/front_image'"),
        ({"state": ["eef_ps"]}, "did you mean 'eef_pos'"),
        ({"language": ["instruktion"]}, "language of the schema='instruktion' is unknown"),
        ({"splits": ["trian"]}, "did you mean 'train'"),
    ],
)
def test_a_wrong_key_of_a_schema_gets_the_nearest(robomimic, schema, sentence):
    with pytest.raises(UserError, match=sentence):
        Hdf5Source(robomimic, Schema.of(schema))


def aloha(path, length, store):
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file["action"] = np.ones((length, 14), np.float32)
        file["observations/qpos"] = np.zeros((length, 14))
        file["observations/qvel"] = np.zeros((length, 14))
        file["compress_len"] = np.zeros((2, length))
        store(file, "observations/images/top", FRAMES[:length])
        file["language_raw"] = np.array([b"fold the shirt"], "S")


def raw(file, key, frames):
    file[key] = frames


def padded(file, key, frames):
    rows = [encoded(frame, "PNG") for frame in frames]
    width = max(map(len, rows)) + 7
    file[key] = np.stack([np.frombuffer(r.ljust(width, b"\0"), np.uint8) for r in rows])


def variable(file, key, frames):
    values = file.create_dataset(key, (len(frames),), h5py.vlen_dtype(np.uint8))
    for step, frame in enumerate(frames):
        values[step] = np.frombuffer(encoded(frame, "PNG"), np.uint8)


@pytest.mark.parametrize("store", [raw, padded, variable])
def test_alohas_layout(tmp_path, store):
    for number in (0, 2, 10):
        aloha(tmp_path / f"episode_{number}.hdf5", 6 + number, store)
    source = open_source(tmp_path)
    assert source.cameras == {"top": "observations/images/top"}
    assert source.schema.title.startswith("ALOHA") and source.schema.hz == 50
    episodes, problems = read(source)
    assert problems == [] and list(episodes) == ["episode_0", "episode_2", "episode_10"]
    assert set(episodes["episode_10"].signals) == {"action", "qpos", "qvel"}
    assert episodes["episode_0"].texts == ("fold the shirt",)
    assert episodes["episode_0"].pictures["top"].size == (8, 12)
    frames = list(source.decoder().frames("episode_10.hdf5", "top", range(16)))
    assert np.array_equal(frames, FRAMES[:16])


def test_files_of_several_episodes_in_a_folder(tmp_path):
    for name in ("stack", "pour"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            write_demo(file.create_group("data/demo_0"), 4)
            file["data"].attrs["problem_info"] = json.dumps({"language_instruction": name})
    episodes, _ = read(open_source(tmp_path))
    assert {name: e.texts for name, e in episodes.items()} == {
        "pour_demo_0": ("pour",),
        "stack_demo_0": ("stack",),
    }


def test_the_name_of_a_file_may_tell_the_session(tmp_path):
    for name in ("2024-05-01_a", "2024-05-01_b", "2024-05-02_a"):
        aloha(tmp_path / f"{name}.hdf5", 4, raw)
    schema = Schema.of({"recording": {"pattern": r"(?P<session>[\d-]+)_\w+\.hdf5"}})
    episodes, _ = read(Hdf5Source(tmp_path, schema))
    sessions = [e.origin.session for e in episodes.values()]
    assert sessions == ["2024-05-01", "2024-05-01", "2024-05-02"]


def test_repainted_pictures_change_checksum_and_stamp(robomimic):
    before, stamp = read(Hdf5Source(robomimic))[0], Hdf5Source(robomimic).stamp()
    with h5py.File(robomimic, "r+") as file:
        file["data/demo_0/obs/hand_image"][0] = 0
    os.utime(robomimic, (1, 1))
    after = read(Hdf5Source(robomimic))[0]
    camera = "hand_image"
    assert before["demo_0"].pictures[camera] != after["demo_0"].pictures[camera]
    assert stamp != Hdf5Source(robomimic).stamp()


# --------------------------------------------------------------------------- bad input


def change(path, act):
    with h5py.File(path, "r+") as file:
        act(file["data/demo_2"])


def replace(group, key, values):
    del group[key]
    group[key] = values


@pytest.mark.parametrize(
    "act, sentence",
    [
        (
            lambda g: replace(g, "obs/front_image", FRAMES.transpose(0, 3, 1, 2)),
            r"obs/front_image has the shape \[150, 3, 8, 12\], channels first; .*transpose",
        ),
        (lambda g: replace(g, "obs/hand_image", FRAMES[:149, :4]), "149 in obs/hand_image"),
        (lambda g: replace(g, "actions", np.ones((149, 7))), "149 in actions"),
        (lambda g: replace(g, "obs/front_image", FRAMES[:0]), "different lengths: 0 in"),
        (lambda g: g.__delitem__("obs"), "has no pictures"),
        (
            lambda g: replace(g, "obs/front_image", np.zeros((150, 0, 12, 3), np.uint8)),
            "0 x 12 pixels",
        ),
    ],
)
def test_a_bad_episode_is_named_and_the_others_survive(robomimic, act, sentence):
    change(robomimic, act)
    episodes, problem = only_problem(robomimic)
    assert list(episodes) == ["demo_0", "demo_10"]
    assert re.search(sentence, problem), problem
    assert problem.startswith(f"{robomimic}, data/demo_2: ")


def test_a_camera_that_vanishes_leaves_the_others(robomimic):
    change(robomimic, lambda group: group.__delitem__("obs/front_image"))
    episodes, problems = read(Hdf5Source(robomimic))
    assert problems == [] and list(episodes["demo_2"].pictures) == ["hand_image"]
    assert set(episodes["demo_0"].pictures) == {"front_image", "hand_image"}


def test_pictures_of_a_wrong_type_are_refused_if_a_schema_names_them(robomimic):
    change(robomimic, lambda g: replace(g, "obs/front_image", FRAMES.astype(np.float32)))
    schema = Schema.of({"cameras": {"front": "obs/front_image"}})
    _, problem = only_problem(robomimic, schema)
    assert "holds float32 [150, 8, 12, 3], which are no pictures" in problem


def test_a_damaged_jpeg_is_named_with_its_step(tmp_path):
    path = tmp_path / "episode_0.hdf5"
    aloha(path, 4, padded)
    with h5py.File(path, "r+") as file:
        file["observations/images/top"][2, 50:] = 0
    frames = Hdf5Source(path).decoder().frames("episode_0.hdf5", "top", range(4))
    assert np.array_equal([next(frames), next(frames)], FRAMES[:2])
    with pytest.raises(
        UserError, match=r"episode_0\.hdf5, .*top, step 2: a (truncated|damaged) PNG"
    ):
        next(frames)


def test_truncated_files_and_pipes_are_named_and_the_others_survive(tmp_path):
    for number in range(3):
        aloha(tmp_path / f"episode_{number}.hdf5", 4, raw)
    broken = tmp_path / "episode_0.hdf5"
    broken.write_bytes(broken.read_bytes()[:3000])
    (tmp_path / "episode_3.hdf5").write_text("<html>")
    os.mkfifo(tmp_path / "episode_4.hdf5")
    with h5py.File(tmp_path / "episode_5.hdf5", "w"):
        pass
    episodes, problems = read(open_source(tmp_path))
    assert list(episodes) == ["episode_1", "episode_2"]
    assert [p.partition(": ")[0] for p in problems] == [
        str(tmp_path / f"episode_{number}.hdf5") for number in (0, 3, 4, 5)
    ]
    assert "is no readable HDF5 file" in problems[0] and "is no regular file" in problems[2]
    assert "holds no episodes" in problems[3]


def test_a_file_that_cannot_be_read_at_all(tmp_path):
    (tmp_path / "a.hdf5").write_text("<html>")
    with pytest.raises(UserError, match=r"a\.hdf5: is no readable HDF5 file"):
        open_source(tmp_path / "a.hdf5")


def test_a_declared_size_allocates_nothing(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("data/demo_0/obs/x", (10**9, 60), "f8", chunks=(1, 60))
        file.create_dataset("data/demo_0/obs/image", (10**9, 9, 9, 3), "u1", chunks=(1, 9, 9, 3))
    _, problem = only_problem(tmp_path / "a.hdf5")
    assert "obs/x has the shape [1000000000, 60], which is too large" in problem
