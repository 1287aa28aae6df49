"""Extraction as users run it: the script runs in its own process, is killed and run again."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcr.data.extract import extract
from mcr.data.extract_shard import Options, ShardTask, extract_shard
from mcr.data.manifest import Manifest, Page
from mcr.data.other_data import read_other_data
from mcr.data.pictures import decode
from mcr.data.schema import LANGUAGES
from mcr.data.sources.rlds import RldsSource
from mcr.data.tfrecord import read_records
from mcr.errors import UserError
from tests.episodes import EXTERIOR_CAMERAS, read_episodes
from tests.waiting import PATIENCE_S, wait_for

SCRIPT = Path(__file__).parents[2] / "scripts" / "process_data_multicore.py"


def start(*arguments, **options) -> subprocess.Popen:
    """Start the script in its own process group."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options
    )


def run(*arguments, **options) -> subprocess.CompletedProcess:
    with start(*arguments, **options) as process:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def children(pid: int) -> list[int]:
    """The worker processes (started by spawn), without the resource tracker."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return [p for p in found if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def whole(reference, tmp_path_factory) -> Path:
    """The tree of the reference shards, extracted without interruption."""
    output = tmp_path_factory.mktemp("whole") / "tree"
    assert extract(reference, output, workers=2).counts["written"] == 4
    return output


# --------------------------------------------------------------------------- what is in the tree


def test_pixels_are_tensorflows(whole, expected):
    compared = 0
    for facts in expected:
        folder = whole / "_".join(facts["file_path"].split("/")[-3:-1]).replace(":", "_")
        for camera in EXTERIOR_CAMERAS:
            for step, sha256 in facts["pixels_sha256"][camera].items():
                pixels = np.asarray(Image.open(folder / camera / f"{step}.png"))
                assert pixels.shape == (180, 320, 3)
                assert hashlib.sha256(pixels.tobytes()).hexdigest() == sha256
                compared += 1
    assert compared == 38


def test_upstreams_loader_reads_the_tree(whole, expected_numbers):
    """Upstream's loader lists and counts files, and reads the text, five frames and the pickle."""
    names = sorted(os.listdir(whole))
    assert len(names) == 4 and not any(":" in name for name in names)
    lengths = set()
    for name in names:
        folder = os.path.join(whole, name)
        lengths.add(length := len(os.listdir(f"{folder}/exterior_image_1_left")))
        for camera in EXTERIOR_CAMERAS:
            assert len(os.listdir(f"{folder}/{camera}")) == length
            for step in (1, length // 2, length - 1):
                assert Image.open(f"{folder}/{camera}/{step}.png").size == (320, 180)
        for key in LANGUAGES:
            with open(f"{folder}/{key}/0.txt", encoding="utf-8") as file:
                file.read()
        with open(f"{folder}/other_data.pkl", "rb") as file:
            data = pickle.load(file)
        state = np.concatenate(
            [data[k][length - 1] for k in ("cartesian_position", "gripper_position")]
        )
        assert state.shape == (7,) and np.array(data["action"]).shape == (length, 7)
        assert data["action_dict"][0]["joint_position"].shape == (7,)
    assert lengths == {41, 45, 32}  # as in expected.json
    numbers = [expected_numbers[f"{number}/action"] for number in range(4)]
    first = pickle.loads(
        (whole / "2023-10-08_Sun_Oct__8_13_52_33_2023/other_data.pkl").read_bytes()
    )
    np.testing.assert_array_equal(np.array(first["action"]), numbers[0])


def test_jpeg_format_keeps_the_stored_bytes(reference, expected, tmp_path):
    cameras = (*EXTERIOR_CAMERAS, "wrist_image_left")
    extract(reference, tmp_path / "tree", Options(cameras, "jpeg"), workers=1)
    for facts in expected:
        name = "_".join(facts["file_path"].split("/")[-3:-1]).replace(":", "_")
        for camera in cameras:
            files = [tmp_path / "tree" / name / camera / f"{s}.jpg" for s in range(facts["length"])]
            hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
            assert hashes == facts["jpeg_sha256"][camera]


@pytest.mark.parametrize("rule, skipped", [("none", 0), ("any", 2), ("all", 3)])
def test_language_rules(make_dataset, make_features, file_path, tmp_path, rule, skipped):
    episodes = [make_features(2, file_path(second)) for second in range(4)]
    for second, texts in enumerate(["abc", "a", " ", ""]):
        for position, key in enumerate(LANGUAGES):
            text = texts[position : position + 1].encode()
            episodes[second][f"steps/{key}"] = [text] * 2
    root = make_dataset([episodes])
    summary = extract(root, tmp_path / "tree", Options(require_language=rule), workers=1)
    assert summary.counts == {
        "written": 4 - skipped,
        "already there": 0,
        "skipped": skipped,
        "failed": 0,
    }
    assert len(list((tmp_path / "tree").iterdir())) == 4 - skipped
    assert not skipped or f"{skipped} by --require-language {rule}" in str(summary)


def test_episodes_of_the_same_second_are_both_written(
    make_dataset, make_features, file_path, tmp_path
):
    shards = [
        [make_features(2, file_path(1, "AUTOLab")), make_features(3, file_path(1, "AUTOLab"))],
        [make_features(4, file_path(1, "IRIS")), make_features(5, file_path(2))],
    ]
    root = make_dataset(shards)
    for part in ((2, 2), (1, 2)):  # names depend on all shards, in any split
        extract(root, tmp_path / "tree", part=part, workers=1)
    base = "2023-07-07_Fri_Jul__7_09_42"
    lengths = {
        folder.name: len(list((folder / EXTERIOR_CAMERAS[0]).iterdir()))
        for folder in (tmp_path / "tree").iterdir()
    }
    assert lengths == {
        f"{base}_01_2023_AUTOLab": 2,
        f"{base}_01_2023_AUTOLab_2": 3,
        f"{base}_01_2023_IRIS": 4,
        f"{base}_02_2023": 5,
    }


OXE = Path(__file__).parent / "reference" / "oxe"


def test_a_data_set_of_open_x_embodiment(tmp_path):
    """Cameras of two sizes and codecs, two splits, and a dictionary of actions."""
    summary = extract(OXE / "bridge_like", tmp_path / "bridge", workers=2)
    assert summary.counts["written"] == 7 and "7 episodes in 2 shards" in str(summary)
    for episode in read_episodes(OXE / "bridge_like"):
        folder = tmp_path / "bridge" / episode.origin.name
        assert {p.name for p in folder.iterdir()} == {
            "image_0",
            "image_1",
            "language_instruction",
            "other_data.pkl",
        }
        assert (folder / "language_instruction/0.txt").read_text("utf-8") == episode.texts[0]
        for camera in ("image_0", "image_1"):
            for step in (0, episode.length - 1):
                pixels = decode((folder / camera / f"{step}.png").read_bytes())
                assert np.array_equal(pixels, decode(episode.encoded_frame(camera, step)))
    extract(OXE / "dict_action", tmp_path / "dict", workers=1)
    episode = read_episodes(OXE / "dict_action")[2]
    data = read_other_data(tmp_path / "dict/train_000002/other_data.pkl")
    box = np.stack(data["orientation_box"])
    assert np.array_equal(box, episode.signals["orientation_box"]) and box.shape == (24, 6)
    for name in ("terminate_episode", "world_vector"):
        values = np.stack([action[name] for action in data["action"]])
        assert np.array_equal(values, episode.signals[f"action/{name}"])


def test_pngs_become_jpegs_where_jpegs_are_wanted(tmp_path):
    extract(OXE / "bridge_like", tmp_path / "tree", Options(format="jpeg"), workers=1, limit=1)
    episode = read_episodes(OXE / "bridge_like")[0]
    folder = tmp_path / "tree" / "train_000000"
    stored = (folder / "image_0/3.jpg").read_bytes()
    assert stored == episode.encoded_frame("image_0", 3)
    written = decode((folder / "image_1/3.jpg").read_bytes()).astype(int)
    assert 0 < np.abs(written - decode(episode.encoded_frame("image_1", 3))).mean() < 6


def test_a_schema_chooses_cameras_splits_and_names(tmp_path):
    schema = tmp_path / "schema.yaml"
    schema.write_text(
        "cameras: {front: observation/image_0, side: observation/image_1}\n"
        "present: {front: episode_metadata/has_language}\n"
        "default_cameras: [front]\n"
        "splits: [val]\n"
        "recording:\n"
        "  key: episode_metadata/file_path\n"
        "  pattern: raw/(?P<session>[^/]+)/[^/]+/(?P<name>[^/]+)/\n"
    )
    result = run(OXE / "bridge_like", tmp_path / "tree", "--schema", schema, "--workers", 1)
    assert result.returncode == 0 and "2 episodes in 1 shards" in result.stdout
    folders = sorted(path.name for path in (tmp_path / "tree").iterdir())
    assert folders == ["traj_5", "traj_6"]
    assert (tmp_path / "tree/traj_5/front/0.png").is_file()
    data = read_other_data(tmp_path / "tree/traj_5/other_data.pkl")
    assert data["session"] == "kitchen_2"
    with pytest.raises(UserError, match="was begun with"):
        extract(OXE / "bridge_like", tmp_path / "tree", Options(("image_0",)), workers=1)


def test_a_tree_is_not_extracted_again(whole, tmp_path):
    with pytest.raises(UserError, match="is a tree already"):
        extract(whole, tmp_path / "again", workers=1)
    assert not list(tmp_path.iterdir())


def test_a_tree_of_an_earlier_version_is_continued(reference, whole, tmp_path, digest):
    """Its manifest says nothing of a schema, and calls cameras views."""
    extract(reference, tmp_path / "tree", limit=2, workers=1)
    path = tmp_path / "tree.manifest" / "options.json"
    options = json.loads(path.read_text())
    del options["schema"]
    options["views"] = options.pop("cameras")
    path.write_text(json.dumps(options))
    assert extract(reference, tmp_path / "tree", workers=1).counts["written"] == 2
    assert digest(tmp_path / "tree") == digest(whole)


# --------------------------------------------------------------------------- damage


def test_damaged_records_fail_alone_and_are_accounted_for(
    make_dataset, make_features, file_path, tmp_path
):
    episodes = [make_features(3, file_path(second)) for second in range(6)]
    del episodes[1]["steps/action"]
    episodes[2]["steps/discount"] = np.zeros(2)
    jpegs = episodes[3][f"steps/observation/{EXTERIOR_CAMERAS[1]}"]
    jpegs[2] = jpegs[2][:4000] + jpegs[2][-2:]
    episodes[4]["episode_metadata/file_path"] = [b"gs://x/../../../../escape/t.h5"]
    root = make_dataset([episodes, [make_features(3, file_path(10 + s)) for s in range(3)]])
    (second_shard,) = root.glob("*-00001-of-*")
    data = bytearray(second_shard.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle one's payload
    second_shard.write_bytes(data[:-1])  # and the last one is cut off
    result = run(root, tmp_path / "out" / "tree", "--workers", 2)
    assert result.returncode == 1
    assert "3 written\n" in result.stdout and "6 failed\n" in result.stdout
    assert "9 episodes in 2 shards\n" in result.stdout
    for reason in [
        "the field steps/action is missing",
        "steps/discount has 2 numbers; 3 steps",
        f"{EXTERIOR_CAMERAS[1]} at step 2: ",
        "unsafe component '..'",
        "bad CRC: the record's bytes are damaged",
        "truncated: the file ends inside this record",
    ]:
        assert reason in result.stdout
    assert result.stdout.count("failed: made-train.tfrecord-0000") == 6
    names = [f"2023-07-07_Fri_Jul__7_09_42_{second:02d}_2023" for second in (0, 5, 10)]
    assert sorted(p.name for p in (tmp_path / "out" / "tree").iterdir()) == names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "out"]  # nothing escaped
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tree", "tree.manifest"]

    page = json.loads((tmp_path / "out/tree.manifest" / f"{second_shard.name}.json").read_text())
    assert [record["status"] for record in page["records"]] == ["written", "failed", "failed"]
    (first_shard,) = root.glob("*-00000-of-*")
    offsets = [record.offset for record in read_records(first_shard)]
    assert f"{first_shard.name} at byte {offsets[1]}: the field" in result.stdout


def test_repaired_shards_are_completed(make_dataset, make_features, file_path, tmp_path):
    root = make_dataset([[make_features(2, file_path(second)) for second in range(3)]])
    (shard,) = root.glob("*tfrecord*")
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    assert extract(root, tmp_path / "tree", workers=1).counts["failed"] == 2
    shard.write_bytes(data)
    counts = extract(root, tmp_path / "tree", workers=1).counts
    assert (counts["already there"], counts["written"], counts["failed"]) == (1, 2, 0)


def test_a_shard_that_grew_after_the_scan_gives_no_wrong_names(
    make_dataset, make_features, file_path, tmp_path
):
    source = RldsSource(make_dataset([[make_features(1, file_path(s)) for s in (0, 1)]]))
    (shard,) = source.parts()
    manifest = Manifest(tmp_path / "manifest", tmp_path / "tree")
    manifest.begin({})
    task = ShardTask(
        part=shard,
        page=Page.of_shard(shard.path),
        names=("2023-07-07_Fri_Jul__7_09_42_00_2023",),
        limit=None,
        options=Options().resolve(source),
        manifest=manifest,
        path=source.path,
        root=source.root,
        schema=source.schema,
    )
    first, second = extract_shard(task).records
    assert (first.status, second.status) == ("written", "failed")
    assert "has changed since it was scanned" in second.reason


def test_a_long_list_of_failures_is_shortened(make_dataset, make_features, file_path, tmp_path):
    episodes = [make_features(1, file_path(second)) for second in range(13)]
    for features in episodes[:12]:
        del features["steps/action"]
    shown = str(extract(make_dataset([episodes]), tmp_path / "tree", workers=1))
    assert shown.count("failed: made-train") == 10 and "failed: 2 more, see the manifest" in shown


def test_missing_shards_are_a_warning(shards, tmp_path):
    next(shards.glob("*-00000-of-*")).unlink()
    result = run(shards, tmp_path / "tree")
    assert result.returncode == 0
    assert "warning: 1 shards are not in the input: 0\n" in result.stdout
    assert "2 episodes in 1 shards\n" in result.stdout


# --------------------------------------------------------------------------- running again


def test_parts_and_limits_add_up_to_the_whole(reference, whole, tmp_path, digest):
    counts = extract(reference, tmp_path / "tree", limit=3, workers=1).counts
    assert counts["written"] == 3
    both = [start(reference, tmp_path / "tree", "--shard", f"{i}/2") for i in (1, 2)]  # at once
    for process in both:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, stderr
        assert "2 episodes in 1 shards" in stdout
    assert digest(tmp_path / "tree") == digest(whole)


def test_shards_are_scanned_once_until_they_change(shards, whole, tmp_path, digest):
    """Otherwise each of many parts would read the whole data set over the network."""
    assert "scanning" in run(shards, tmp_path / "tree", "--limit", 1).stderr
    assert "scanning" not in run(shards, tmp_path / "tree", "--shard", "1/2").stderr
    os.utime(min(shards.glob("*tfrecord*")))
    assert "scanning" in run(shards, tmp_path / "tree", "--shard", "2/2").stderr
    assert digest(tmp_path / "tree") == digest(whole)


def test_the_same_run_twice_at_once_does_the_work_once(reference, whole, tmp_path, digest):
    both = [start(reference, tmp_path / "tree", "--workers", 1) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    written = sum(int(output.split(" written")[0]) for output in outputs)
    assert written == 4
    assert digest(tmp_path / "tree") == digest(whole)


def test_a_finished_tree_is_left_as_it_is(reference, whole, digest):
    before = digest(whole)
    times = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    summary = extract(reference, whole, workers=1)
    assert summary.counts == {"written": 0, "already there": 4, "skipped": 0, "failed": 0}
    assert digest(whole) == before
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == times


def test_an_episode_that_was_removed_is_written_again(reference, whole, tmp_path, digest):
    extract(reference, tmp_path / "tree", workers=1)
    victim = min((tmp_path / "tree").iterdir())
    victim.rename(tmp_path / "elsewhere")
    assert extract(reference, tmp_path / "tree", workers=1).counts["written"] == 1
    assert digest(tmp_path / "tree") == digest(whole)


@pytest.fixture(scope="module")
def large(make_large) -> Path:
    """24 episodes of 30 steps in 6 shards, to kill a run in."""
    return make_large(num_shards=6, episodes=4, length=30)


def give_way() -> None:
    """Let the test, which sleeps until it kills this process, have any core that it asks for."""
    os.nice(19)


def test_a_run_that_is_killed_and_repeated_gives_the_same_tree(large, tmp_path, digest):
    undisturbed = extract(large, tmp_path / "undisturbed", workers=2)
    assert undisturbed.counts["written"] == 24
    tree = tmp_path / "tree"
    draw = random.Random(0)
    partial_seen = 0
    for victim in ["all", "worker", "main"] * 2:
        for folder in sorted(tree.glob("2*"))[2:]:  # so that most of the work is still to be done
            shutil.rmtree(folder)
        before = len(list(tree.glob("2*")))
        process = start(large, tree, "--workers", 2, preexec_fn=give_way)
        wait_for(lambda before=before: len(list(tree.glob("2*"))) > before, process)  # it works
        time.sleep(draw.uniform(0, 0.05))
        workers = children(process.pid)
        if victim == "all":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "worker":
            os.kill(workers[0], signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        if victim == "worker":  # its work is done again, in the same run
            assert process.returncode == 0, stderr
            assert digest(tree) == digest(tmp_path / "undisturbed")
            continue
        assert process.returncode == -signal.SIGKILL
        partial_seen += any(tree.glob(".partial-*"))
        for folder in tree.glob("2*"):  # whatever has its name is whole
            assert len(list(folder.rglob("*.png"))) == 60 and (folder / "other_data.pkl").exists()
        assert len(list(tree.glob("2*"))) < 24, "everything was done before the kill"
    assert partial_seen, "no kill came in the middle of an episode"
    assert run(large, tree).returncode == 0
    assert digest(tree) == digest(tmp_path / "undisturbed")


def test_ctrl_c_stops_cleanly(large, tmp_path):
    def heed_ctrl_c():  # a shell makes what it starts with & ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        give_way()

    process = start(large, tmp_path / "tree", "--workers", 2, preexec_fn=heed_ctrl_c)
    wait_for(lambda: list(tmp_path.glob("tree/2*")), process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers, too
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert f"error: interrupted; every episode in {tmp_path / 'tree'} is whole" in stderr
    assert "Traceback" not in stderr
    assert 0 < len(list(tmp_path.glob("tree/2*"))) < 24
    assert not list(tmp_path.glob("tree/.partial-*"))


def test_a_full_disk_stops_the_run_with_one_sentence(reference, whole, tmp_path, digest):
    """A limit on the size of a file stands for a full disk, because no test may fill a disk."""

    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    result = run(reference, tmp_path / "tree", preexec_fn=limit_files)
    assert result.returncode == 2
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert "File too large, so the run has stopped" in message
    assert f"every episode in {tmp_path / 'tree'} is whole" in message
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "tree").iterdir()) == []
    assert run(reference, tmp_path / "tree").returncode == 0
    assert digest(tmp_path / "tree") == digest(whole)


def test_a_worker_holds_one_episode_at_a_time(make_dataset, make_features, file_path, tmp_path):
    """A worker needs under 200 MB although DROID's longest episodes have 100 MB."""
    episodes = [make_features(40, file_path(second)) for second in range(3)]
    for features in episodes:  # 400 steps, 26 MB
        for key, values in features.items():
            if key.startswith("steps/"):
                features[key] = values * 10 if isinstance(values, list) else np.tile(values, 10)
    root = make_dataset([episodes])
    episode_mb = next(root.glob("*tfrecord*")).stat().st_size / 3 / 2**20
    short = make_dataset([[make_features(1, file_path(1))]], "short")
    options = Options(format="jpeg")
    (least,) = extract(short, tmp_path / "a", options, workers=1).results
    (most,) = extract(root, tmp_path / "b", options, workers=1).results
    assert episode_mb > 20
    assert most.peak_memory_mb - least.peak_memory_mb < 1.5 * episode_mb
    assert least.peak_memory_mb < 80


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        (["--format", "jpg"], "argument --format: 'jpg' is unknown; did you mean 'jpeg'?"),
        (["--cameras", "wrist_image"], "did you mean 'wrist_image_left'?"),
        (["--cameras", *EXTERIOR_CAMERAS[:1] * 2], "each once"),
        (["--require-language", "al"], "did you mean 'all'?"),
        (["--shard", "0/4"], "--shard 0/4: give i/n with i from 1 to n"),
        (["--shard", "5/4"], "i from 1 to n"),
        (["--shard", "four"], "--shard four: give i/n"),
        (["--limit", "0"], "argument --limit: 0 must be a whole number of at least 1"),
        (["--engine", "rai"], "argument --engine: 'rai' is unknown; did you mean 'ray'?"),
        (["--workers", "0"], "argument --workers: 0 must be"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(reference, tmp_path, options, message):
    result = run(reference, tmp_path / "tree", *options)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "tree").exists() or not any((tmp_path / "tree").iterdir())


def test_a_folder_that_is_no_tree_of_ours_is_not_written_to(reference, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        extract(reference, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_other_options_are_refused_with_the_difference(reference, make_dataset, tmp_path):
    extract(reference, tmp_path / "tree", limit=1, workers=1)
    with pytest.raises(UserError, match="format 'png', not 'jpeg'"):
        extract(reference, tmp_path / "tree", Options(format="jpeg"))
    with pytest.raises(UserError, match=r"cameras .*wrist_image_left"):
        extract(reference, tmp_path / "tree", Options(cameras=("wrist_image_left",)))
    with pytest.raises(UserError, match="dataset 'r2d2_faceblur-train in 2 shards'"):
        extract(make_dataset([[]]), tmp_path / "tree")


def test_an_input_whose_names_have_changed_is_refused(
    make_dataset, make_features, file_path, tmp_path
):
    shards = [[make_features(2, file_path(1, lab))] for lab in ("AUTOLab", "IRIS")]
    root = make_dataset(shards)
    second = max(root.glob("*tfrecord*")).rename(tmp_path / "later")
    extract(root, tmp_path / "tree", workers=1)
    second.rename(root / "made-train.tfrecord-00001-of-00002")
    with pytest.raises(UserError, match=r"is called .*_AUTOLab' now"):
        extract(root, tmp_path / "tree", workers=1)
    assert extract(root, tmp_path / "fresh", workers=1).counts["written"] == 2


def test_missing_input(tmp_path):
    result = run(tmp_path / "nowhere", tmp_path / "tree")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "no such file or folder" in result.stderr
    assert not (tmp_path / "tree").exists()
