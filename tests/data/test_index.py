"""The index: what it holds, when it is built anew, where it lies, and what odd episodes cost."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml

import mcr
from mcr.cli import run
from mcr.data.frames import FrameReader
from mcr.data.index import Index, build_index, default_index_path, open_index
from mcr.data.other_data import read_other_data
from mcr.data.pictures import decode
from mcr.data.schema import Schema, load_schema
from mcr.data.sources.rlds import RldsSource
from mcr.errors import UserError
from tests.data.formats import record_episodes, write_hdf5
from tests.episodes import read_episodes

ROOT = Path(__file__).resolve().parents[2]


def test_holds_every_number_and_every_frame_of_the_shards(shards):
    index = open_index(shards)
    reader = FrameReader(index)
    episodes = {episode.origin.name: episode for episode in read_episodes(shards)}
    assert [name.decode() for name in index.names] == sorted(episodes)
    for row, name in enumerate(index.names):
        episode = episodes[name.decode()]
        assert index.lengths[row] == episode.length
        block = index.signals[index.starts[row] :][: episode.length]
        for key, (begin, end) in index.info["columns"].items():
            expected = episode.signals[key].reshape(episode.length, -1)
            assert np.array_equal(block[:, begin:end], expected), key
        for number, camera in enumerate(index.cameras):
            for step in (0, episode.length - 1):
                expected = decode(episode.encoded_frame(camera, step))
                assert np.array_equal(reader.read(row, number, step), expected)
    reader.close()


def test_tree_and_shards_have_the_same_content(shards, tree):
    from_shards, from_tree = open_index(shards), open_index(tree)
    assert from_shards.signals_fingerprint == from_tree.signals_fingerprint
    assert from_shards.fingerprint != from_tree.fingerprint  # JPEG and PNG
    assert from_shards.info["columns"] == from_tree.info["columns"]
    shared = ["name", "length", "session", "lab", "outcome", "file_path", "language_instruction"]
    assert from_shards.table[shared].equals(from_tree.table[shared])


def test_pickles_small_and_opens_again(shards):
    index = open_index(shards)
    _ = index.signals
    blob = pickle.dumps(index)
    assert len(blob) < 2000  # path and schema; the signals have 38 KB
    assert pickle.loads(blob).fingerprint == index.fingerprint


def test_a_damaged_record_is_left_out_and_named(shards, capsys):
    first = sorted(shards.glob("*tfrecord*"))[0]
    data = bytearray(first.read_bytes())
    data[1000] ^= 1
    first.write_bytes(bytes(data))
    index = open_index(shards)
    assert len(index) == 3
    assert first.name in index.info["problems"][0] and "CRC" in index.info["problems"][0]
    assert "left out" in capsys.readouterr().out


def test_an_incomplete_folder_of_a_tree_is_left_out_and_named(tree):
    folder = sorted(tree.iterdir())[0]
    (folder / "exterior_image_1_left" / "5.png").unlink()
    index = open_index(tree)
    assert len(index) == 3
    assert folder.name in index.info["problems"][0]


def test_an_episode_with_nan_is_left_out_and_named(tree):
    folder = sorted(tree.iterdir())[0]
    data = read_other_data(folder / "other_data.pkl")
    data["joint_position"][7] = np.full(7, np.nan)
    (folder / "other_data.pkl").write_bytes(pickle.dumps(data))
    index = open_index(tree)
    assert len(index) == 3
    assert "joint_position is not finite at step 7" in index.info["problems"][0]
    assert np.isfinite(index.signals).all()


def test_a_changed_data_set_is_indexed_anew_and_says_so(shards, tree, capsys):
    before = open_index(shards), open_index(tree)
    removed = sorted(shards.glob("*tfrecord*"))[1]
    with removed.open("ab") as file:
        file.write(b"x")
    folder = sorted(tree.iterdir())[0]
    folder.rename(tree / "another_name")
    capsys.readouterr()
    now = open_index(shards), open_index(tree)
    printed = capsys.readouterr().out
    assert f"1 entries changed since it was indexed (first: {removed.name})" in printed
    assert f"{tree}: 2 entries changed" in printed and printed.count("indexing anew") == 2
    assert "00001-of-00002" in now[0].info["problems"][0]
    assert "another_name" in now[1].table["name"].tolist()
    assert folder.name not in now[1].table["name"].tolist()
    assert before[1].signals_fingerprint != now[1].signals_fingerprint
    open_index(shards), open_index(tree)
    assert capsys.readouterr().out == ""  # once is enough


def test_an_index_of_other_data_is_refused(shards, tree):
    open_index(shards)
    with pytest.raises(UserError, match="indexes"):
        open_index(tree, default_index_path(shards))


@pytest.mark.parametrize("content", ["nothing", "file", "stray"])
def test_a_folder_without_a_data_set_is_refused(tmp_path, content):
    root = tmp_path / "data"
    if content == "file":
        root.write_text("")
    if content == "stray":
        (root / "folder").mkdir(parents=True)
    with pytest.raises(UserError, match=str(root)):
        open_index(root)
    assert not default_index_path(root).exists()


def test_another_format_is_refused(shards):
    path = open_index(shards).path
    info = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(info | {"format": "mcr-index-0"}))
    with pytest.raises(UserError, match="mcr-index-0"):
        Index(path)


def test_one_and_two_processes_build_the_same(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(RldsSource, "is_small", lambda self: False)  # it would be read right here
    one = build_index(RldsSource(shards), tmp_path / "one", workers=1)
    two = build_index(RldsSource(shards), tmp_path / "two", workers=2)
    assert contents(one.path) == contents(two.path)
    assert {"signals.f32", "frame_offsets_2.i64", "index.json"} <= {*contents(one.path)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_index_of_another_version_is_built_anew(shards, capsys):
    path = open_index(shards).path
    info = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(info | {"format": "mcr-index-2"}))
    capsys.readouterr()
    assert len(open_index(shards)) == 4
    assert "another version; indexing anew" in capsys.readouterr().out
    (path / "index.json").write_text(json.dumps({"format": "a recipe"}))
    with pytest.raises(UserError, match="is no index; choose another"):
        open_index(shards)


# --------------------------------------------------------------------------- where it lies

OPEN = """
import sys
from mcr.data.index import open_index
index = open_index(sys.argv[1])
print(index.path, len(index))
"""


def start(code: str, *arguments, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finished(process: subprocess.Popen) -> str:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out


def test_processes_that_build_at_once_build_it_once(shards):
    outputs = [finished(p) for p in [start(OPEN, shards) for _ in range(3)]]
    assert sum("indexed 4 episodes" in output for output in outputs) == 1
    path = default_index_path(shards)
    assert all(output.splitlines()[-1] == f"{path} 4" for output in outputs)
    assert not [p for p in path.parent.iterdir() if "partial" in p.name]


def test_data_are_moved_together_with_their_index(shards, tmp_path, capsys):
    before = open_index(shards)
    expected, name = FrameReader(before).read(1, 0, 3), before.path.name
    place = tmp_path / "elsewhere" / "deeper"
    place.mkdir(parents=True)
    shutil.move(shards, place / shards.name)
    shutil.move(before.path, place / name)
    capsys.readouterr()
    for argument in (place / shards.name, place / name):  # the data, or the index itself
        index = open_index(argument)
        assert index.source == place / shards.name and index.path == place / name
        assert np.array_equal(FrameReader(index).read(1, 0, 3), expected)
    assert capsys.readouterr().out == ""  # nothing was built
    (place / shards.name).rename(place / "renamed")
    with pytest.raises(UserError, match="the indexed data set is gone"):
        open_index(place / name)


def test_a_link_of_another_name_to_a_file_is_read(tmp_path):
    """Hubs keep files under the names of their checksums, with links to them."""
    episodes = record_episodes()
    blob = write_hdf5(tmp_path / "blobs", episodes).rename(tmp_path / "blobs" / "3f29c0")
    link = tmp_path / "links" / "demos.hdf5"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(blob, link.parent))
    index = open_index(link)
    assert index.path == tmp_path / "blobs" / "3f29c0.index" and index.source == link
    for number, camera in enumerate(index.cameras):
        expected = episodes[0].frames[camera.removesuffix("_image")][2]
        assert np.array_equal(FrameReader(index).read(0, number, 2), expected)


def test_read_only_data_have_their_index_in_the_cache(reference):
    """In a process without root's rights, because root may write everywhere."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # pytest's own folders are private
        folder, cache = Path(name) / "readonly", Path(name) / "cache"
        shutil.copytree(reference, folder / "data", copy_function=shutil.copyfile)
        cache.mkdir()
        cache.chmod(0o777)
        folder.chmod(0o555)
        Path(name).chmod(0o755)
        drop = "if os.getuid() == 0:\n    os.setgid(65534)\n    os.setuid(65534)\n"
        code = OPEN.replace("index = ", f"import os\n{drop}index = ")
        env = {"XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
        try:
            outputs = [finished(start(code, folder / "data", env=env)) for _ in range(2)]
        finally:
            folder.chmod(0o755)
        assert [o.count("indexed 4 episodes") for o in outputs] == [1, 0]
        path, count = outputs[1].split()
        assert Path(path).parent == cache / "mcr" / "indexes" and count == "4"
        assert sorted(p.name for p in folder.iterdir()) == ["data"]


def test_a_plain_script_without_a_guard_may_open_data_with_workers(shards, tmp_path):
    script = tmp_path / "plain.py"
    script.write_text(
        "import sys\n"
        "import mcr\n"
        "from mcr.data.sources.rlds import RldsSource\n"
        "RldsSource.is_small = lambda self: False\n"
        "import mcr.runs.processes as processes\n"
        "processes.num_cores = lambda: 2\n"
        "print('begun')\n"
        "data = mcr.open_data(sys.argv[1])\n"
        "print(len(data), data.frames(0, data.cameras[0], 0).shape)\n"
    )
    result = subprocess.run(
        [sys.executable, str(script), str(shards)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("begun") == 1
    assert result.stdout.splitlines()[-1] == "4 (180, 320, 3)"


# --------------------------------------------------------------------------- schemas


def test_a_schema_that_reads_other_fields_indexes_anew(shards, capsys):
    index = open_index(shards)
    content = index.schema.as_dict()
    capsys.readouterr()
    other_use = Schema.of({**content, "state": ["joint_position"], "hz": 5, "rotations": {}})
    again = open_index(shards, schema=other_use)
    assert again.state == ("joint_position",) and again.schema.hz == 5
    assert capsys.readouterr().out == ""
    key = RldsSource(shards).cameras[index.cameras[0]]
    fewer = Schema.of({**content, "cameras": {"front": key}, "default_cameras": []})
    again = open_index(shards, schema=fewer)
    assert again.cameras == ("front",)
    assert "the schema reads other fields; indexing anew" in capsys.readouterr().out


def test_inspect_prints_a_schema_that_can_be_read_back(tmp_path, capsys):
    path = write_hdf5(tmp_path, record_episodes())
    assert not run(["inspect", str(path)])
    printed = capsys.readouterr().out
    text = printed[printed.index("# schema of") : printed.index("\npicture:")]
    (tmp_path / "own.yaml").write_text(text)
    schema, index = load_schema(tmp_path / "own.yaml"), open_index(path)
    assert "# unsure: actions has 7 numbers" in text
    assert "# unsure: the rate in Hz is not known" in text
    assert "# unsure: every episode counts as a session of its own" in text
    assert (schema.state, schema.action) == (("state",), ("actions",))
    assert set(schema.cameras) == {"front", "wrist"} and set(yaml.safe_load(text)) >= {"state"}
    again = open_index(path, tmp_path / "own", schema=tmp_path / "own.yaml")
    assert again.cameras == index.cameras and again.fingerprint == index.fingerprint


# --------------------------------------------------------------------------- odd episodes


def write_made_up(root: Path, names: str, lengths=(6, 4, 7)) -> None:
    for number, name in enumerate(names):
        length = lengths[number % len(lengths)]
        frames = {c: np.full((length, 8, 9, 3), 10 * number + 1, np.uint8) for c in ("a", "b")}
        values = np.arange(length * 3, dtype=np.float32).reshape(length, 3) + 100 * number
        mcr.write_episode(root, name, frames, values, values[:, :2])


def edit(folder: Path, change) -> None:
    data = read_other_data(folder / "other_data.pkl")
    change(data, len(data["action"]))
    (folder / "other_data.pkl").write_bytes(pickle.dumps(data))


def add_signal(data, length):
    data["extra"] = [np.ones(5, np.float32)] * length


def drop_signal(data, length):
    del data["state"]


def widen_signal(data, length):
    data["state"] = [np.ones(4, np.float32)] * length


@pytest.mark.parametrize("odd", "aceg")  # first, two in the middle, last
@pytest.mark.parametrize("change", [add_signal, drop_signal, widen_signal])
def test_an_odd_episode_costs_only_itself_or_its_extra_signal(tmp_path, odd, change):
    tree, plain = tmp_path / "tree", tmp_path / "plain"
    for root in (tree, plain):
        write_made_up(root, "aceg")
    edit(tree / odd, change)
    if change is not add_signal:
        shutil.rmtree(plain / odd)
    index, expected = open_index(tree), open_index(plain)
    assert index.fingerprint == expected.fingerprint
    assert index.info["columns"] == expected.info["columns"]
    for row, name in enumerate(index.table["name"]):
        begin = index.starts[row]
        other = int(expected.starts[row])
        length = int(index.lengths[row])
        assert np.array_equal(
            index.signals[begin : begin + length], expected.signals[other : other + length]
        )
        frame = FrameReader(index).read(row, 1, length - 1)
        assert np.array_equal(frame, FrameReader(expected).read(row, 1, length - 1)), name
    if change is add_signal:
        assert index.info["problems"] == []
        assert "extra" in index.info["remarks"][0]
    else:
        (problem,) = index.info["problems"]
        assert problem.startswith(f"{odd} (") and "lacks the signals state (3)" in problem


@pytest.mark.parametrize("odd", "ag")
def test_an_episode_that_lacks_a_camera_is_kept(tmp_path, odd):
    tree = tmp_path / "tree"
    write_made_up(tree, "aceg")
    shutil.rmtree(tree / odd / "b")
    data = mcr.open_data(tree)
    assert len(data) == 4 and data.cameras == ("a", "b")
    for number, name in enumerate("aceg"):
        assert data.size(name, "a") == (8, 9)
        assert data.size(name, "b") == ((0, 0) if name == odd else (8, 9))
        assert (data.frames(name, "a") == 10 * number + 1).all()
        if name != odd:
            assert (data.frames(name, "b") == 10 * number + 1).all()
    with pytest.raises(UserError, match=f"{odd}: has no camera 'b', only a"):
        data.frames(odd, "b")


def test_a_camera_that_no_episode_has_is_dropped(tmp_path):
    tree = tmp_path / "tree"
    write_made_up(tree, "ace")
    for name in "ace":
        (tree / name / "a").rename(tree / name / "z")
    assert open_index(tree).cameras == ("b", "z")
