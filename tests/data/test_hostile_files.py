"""Files that would fill the memory, block for ever or lead elsewhere, in every format."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import mcr
from mcr.data import pictures, regular_files
from mcr.data.clean_facts import inspect_episode
from mcr.data.index import open_index
from mcr.errors import UserError
from mcr.runs.processes import limited_memory, ordered_map
from tests.data.formats import FORMATS, SIZES

ROOT = Path(__file__).parents[2]


def replace(path: Path, kind: str) -> None:
    """Put something into the place of a file that must not be read."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        path.touch()
        os.truncate(path, 2**40)


KINDS = ("pipe", "zeros", "loop", "holes")


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_of_bounded_size_are_read_whole(tmp_path, kind):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert regular_files.read_bytes(path) == b"content"
    replace(path, kind)
    with pytest.raises(
        ValueError, match="bytes; at most" if kind == "holes" else "no regular file"
    ):
        regular_files.read_bytes(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["other_data.pkl", "front/0.png", "language_instruction/0.txt"])
def test_a_strange_file_costs_one_episode_of_a_tree(recorded, tmp_path, file, kind):
    root = FORMATS["tree"](tmp_path, recorded)
    replace(root / "episode_001" / file, kind)
    data = mcr.open_data(root)
    assert len(data) == 3 and "episode_001" in data.index.info["problems"][0]
    inspect_episode(root / "episode_001")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("rlds", "features.json"),
        ("rlds", "dataset_info.json"),
        ("lerobot", "meta/episodes.jsonl"),
        ("lerobot", "meta/tasks.jsonl"),
        ("lerobot", "data/chunk-000/episode_000001.parquet"),
        ("media", "episode_001/signals.csv"),
    ],
)
def test_a_strange_file_is_named_or_refused(recorded, tmp_path, name, file, kind):
    root = FORMATS[name](tmp_path, recorded)
    replace(root / file, kind)
    try:
        index = open_index(root)
    except UserError as error:
        assert str(root) in str(error)
    else:
        optional = file in ("dataset_info.json", "meta/tasks.jsonl", "episode_001/signals.csv")
        assert len(index) == 4 if optional and not index.info["problems"] else len(index) == 3


# --------------------------------------------------------------------------- pictures


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + b"\0" * 100


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(pictures.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    place = data.find(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("make", [png, jpeg])
@pytest.mark.parametrize("size", [(65500, 65500), (0, 5), (8193, 8192)])
def test_the_size_of_a_picture_is_checked_before_it_is_decoded(make, size):
    for read in (pictures.size_of, pictures.decode):
        with pytest.raises(ValueError, match="pixels; at most 67,108,864 are read|JPEG"):
            read(make(*size))
    assert pictures.size_of(make(8192, 8192)) == (8192, 8192)


def test_a_jpeg_of_too_many_scans_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(buffer, "jpeg", progressive=True)
    data = buffer.getvalue()
    assert pictures.decode(data).shape == (16, 16, 3)
    scan = data[data.rfind(b"\xff\xda") : -2]
    with pytest.raises(ValueError, match="scans; at most 100"):
        pictures.decode(data[:-2] + scan * 1000 + b"\xff\xd9")


# --------------------------------------------------------------------------- JSON


def change(path: Path, *keys, value) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("value", [["1e9", "2"], [10**18, 2], [-1, 2], [float("inf")], None, "x"])
def test_absurd_lengths_of_shards_are_refused(recorded, tmp_path, value):
    root = FORMATS["rlds"](tmp_path, recorded)
    change(root / "dataset_info.json", "splits", 0, "shardLengths", value=value)
    with pytest.raises(UserError, match=r"dataset_info\.json: not a TFDS"):
        open_index(root)


def test_a_number_of_shards_that_no_data_set_has_is_refused(recorded, tmp_path):
    root = FORMATS["rlds"](tmp_path, recorded)
    shard = next(root.glob("*tfrecord*"))
    shard.rename(shard.with_name("all_formats-train.tfrecord-00000-of-99999999999"))
    with pytest.raises(UserError, match="tells of 99,999,999,999 shards"):
        open_index(root)


def test_missing_shards_are_a_remark_of_the_index(recorded, tmp_path):
    root = FORMATS["rlds"](tmp_path, recorded)
    (root / "all_formats-train.tfrecord-00001-of-00002").unlink()
    assert open_index(root).info["remarks"] == ["1 shards are not in the folder: 1"]


def test_a_template_that_matches_in_too_many_ways_is_refused(recorded, tmp_path):
    root = FORMATS["rlds"](tmp_path, recorded)
    template = "{DATASET}" * 12 + "x{SPLIT}"
    change(root / "dataset_info.json", "splits", 0, "filepathTemplate", value=template)
    with pytest.raises(UserError, match="names the data set more than twice"):
        open_index(root)


@pytest.mark.parametrize("keys", [["features"], ["featuresDict", "features", "steps"]])
def test_features_without_steps_or_cameras_are_refused(recorded, tmp_path, keys):
    root = FORMATS["rlds"](tmp_path, recorded)
    change(root / "features.json", *keys, value={})
    if len(keys) == 1:
        (root / "features.json").write_text('{"featuresDict": {"features": {"steps": 3}}}')
    with pytest.raises(UserError, match=r"features\.json: does not describe RLDS"):
        open_index(root)
    features = {"sequence": {"feature": {"tensor": {"dtype": "float32"}}}}
    (root / "features.json").write_text(
        json.dumps({"featuresDict": {"features": {"steps": features}}})
    )
    with pytest.raises(UserError, match="the steps have no pictures"):
        open_index(root)


@pytest.mark.parametrize(
    ("name", "file"), [("rlds", "features.json"), ("lerobot", "meta/info.json")]
)
def test_json_that_is_nested_too_deeply_is_refused(recorded, tmp_path, name, file):
    root = FORMATS[name](tmp_path, recorded)
    (root / file).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        open_index(root)


@pytest.mark.parametrize("template", ["{episode_index:999999999d}", "{episode_index.real}", "{0}"])
def test_a_template_of_paths_holds_only_numbers(recorded, tmp_path, template):
    root = FORMATS["lerobot"](tmp_path, recorded)
    change(root / "meta/info.json", "data_path", value=template)
    with pytest.raises(UserError, match="is no template of a path"):
        open_index(root)


# --------------------------------------------------------------------------- HDF5


@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_links_of_hdf5_open_no_pipe(recorded, tmp_path, target):
    path = FORMATS["hdf5"](tmp_path, recorded)
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink(target, "/data/demo_0")
    index = open_index(path)
    assert len(index) == 3 and "demo_1: " in index.info["problems"][0]


@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_link_in_the_place_of_all_episodes_is_refused(recorded, tmp_path, target):
    path = FORMATS["hdf5"](tmp_path, recorded)
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(path, "r+") as file:
        del file["data"]
        file["data"] = h5py.ExternalLink(target, "/data")
    with pytest.raises(UserError, match=f"{path.name}.*(link leads to|pipe)"):
        open_index(path)


def test_links_of_hdf5_to_files_beside_it_are_followed(recorded, tmp_path):
    path = FORMATS["hdf5"](tmp_path, recorded)
    path.rename(tmp_path / "original.h5")
    with h5py.File(tmp_path / "linked.hdf5", "w") as file:
        file["data/demo_0"] = h5py.ExternalLink("original.h5", "/data/demo_2")
        file["data/demo_1"] = h5py.SoftLink("/data/demo_0")
        file["data/demo_2"] = h5py.SoftLink("/data/demo_2")
    data = mcr.open_data(tmp_path / "linked.hdf5")
    assert data.episodes["length"].tolist() == [20, 20]
    assert "too many links" in data.index.info["problems"][0]
    assert np.array_equal(data.signal("state", 1), recorded[2].state)


def test_values_of_hdf5_in_other_files_are_not_read(recorded, tmp_path):
    path = FORMATS["hdf5"](tmp_path, recorded)
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/actions"]
        place = [("/etc/passwd", 0, 9 * 7)]
        file["data/demo_1"].create_dataset("actions", (9, 7), np.uint8, external=place)
    index = open_index(path)
    assert len(index) == 3 and "keeps its values in other files" in index.info["problems"][0]


# --------------------------------------------------------------------------- names and memory


def test_names_that_are_no_text_cost_one_episode(recorded, tmp_path, capsys):
    root = tmp_path / "runs"
    for number in range(3):
        (root / f"run_{number}").mkdir(parents=True)
        frame = pictures.encode_png(np.zeros((8, 8, 3), np.uint8))
        (root / f"run_{number}" / "0.png").write_bytes(frame)
    os.rename(root / "run_1" / "0.png", os.fsencode(root / "run_1") + b"/\xff.png")
    index = open_index(root)
    assert len(index) == 2 and "which is no Unicode" in index.info["problems"][0]
    assert "run_1" in capsys.readouterr().out


def test_the_memory_limit_of_a_process_ends_with_its_block():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory(10**9), pytest.raises(MemoryError):
        np.zeros(2**32, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def allocate(size: int) -> str:
    try:
        return str(np.ones(size, np.uint8)[-1])
    except MemoryError:
        return "too much"


def test_workers_have_a_memory_limit():
    sizes = [10, 2**46, 20]
    assert list(ordered_map(allocate, sizes, workers=2)) == ["1", "too much", "1"]


def test_an_episode_that_needs_too_much_memory_is_the_only_one_that_is_lost(recorded, tmp_path):
    path = FORMATS["hdf5"](tmp_path, recorded)
    with h5py.File(path, "r+") as file:
        for camera, size in SIZES.items():
            del file[f"data/demo_1/obs/{camera}"]
            shape = (9, *size, 3)
            file.create_dataset(f"data/demo_1/obs/{camera}", shape, np.uint8)
        del file["data/demo_1/actions"], file["data/demo_1/obs/state"]
        file.create_dataset("data/demo_1/obs/state", (9, 2**40), "f4", chunks=(1, 2**16))
    index = open_index(path)
    assert len(index) == 3 or "demo_1" not in index.names


# --------------------------------------------------------------------------- the campaigns


def test_a_small_attack_on_every_reader():
    """`benchmarks/attack.py` runs thousands of cases; these are some of them, always the same.

    Those of weights are in `tests/models/test_damaged_weights.py`.
    """
    command = [sys.executable, "benchmarks/attack.py", "--cases", "90", "--seed", "3"]
    command += ["--campaigns", "pickle", "picture", "tree", "rlds", "lerobot-v2", "lerobot-v3"]
    command += ["hdf5", "videos", "pictures"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "| all | 90 |" in run.stdout
