import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mcr.data.episode import Episode
from mcr.data.schema import RecordingSchema, Schema
from mcr.data.sources import open_source
from mcr.data.sources.lerobot import LerobotSource
from mcr.errors import UserError
from tests.write_video import cut_off, frame, shows, write_video

REFERENCE = Path(__file__).parents[1] / "reference" / "lerobot"
LENGTHS = {"lerobot_v3_video": (40, 12, 50, 31, 25, 44), "lerobot_v3_image": (40, 12, 50)}
FPS = 15


def read(source):
    """All episodes of a source, and the sentences about those that are left out."""
    found = [e for part in source.parts() for e in pickle.loads(pickle.dumps(part)).episodes()]
    return [e for e in found if isinstance(e, Episode)], [e for e in found if isinstance(e, str)]


# --------------------------------------------------------------------------- what LeRobot wrote


@pytest.fixture(params=list(LENGTHS))
def reference(request):
    name = request.param
    return name, LerobotSource(REFERENCE / name), np.load(REFERENCE / f"{name}.expected.npz")


def test_episodes_are_what_lerobot_reads(reference):
    name, source, expected = reference
    episodes, problems = read(source)
    assert problems == [] and source.name == name and source.schema.hz == FPS
    assert tuple(e.length for e in episodes) == LENGTHS[name]
    tasks = json.loads((REFERENCE / f"{name}.tasks.json").read_text())
    for number, (episode, task) in enumerate(zip(episodes, tasks, strict=True)):
        assert episode.key == str(number) and episode.texts == (task,)
        assert set(episode.signals) == {"state", "action"}
        for signal, values in episode.signals.items():
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected[f"{number}/{signal}"])
        assert episode.origin.name == episode.origin.session == f"episode_{number:06d}"
        assert episode.origin.split == "train"
        assert episode.pictures["wrist"].size == (96, 128)
        assert all(p.file == "" and p.offsets is None for p in episode.pictures.values())


def test_every_frame_is_the_one_that_lerobot_decodes(reference):
    name, source, expected = reference
    decoder = source.decoder()
    for number, length in enumerate(LENGTHS[name]):
        for camera in source.cameras:
            frames = list(decoder.frames(str(number), camera, range(length)))
            means = [pixels.mean((0, 1)) for pixels in frames]
            np.testing.assert_allclose(means, expected[f"{number}/mean/{camera}"], atol=1e-9)
            assert len(np.unique(means, axis=0)) > length / 2  # an off-by-one would show
            for step in range(0, length, 15):
                key = f"{number}/pixels/{camera}/{step}"
                if key in expected:
                    np.testing.assert_array_equal(frames[step], expected[key])
    decoder.close()


def test_single_frames_are_found_in_any_order(reference):
    name, source, expected = reference
    decoder, generator = source.decoder(threads=1), np.random.default_rng(0)
    for _ in range(60):
        number = int(generator.integers(len(LENGTHS[name])))
        camera = list(source.cameras)[generator.integers(len(source.cameras))]
        steps = np.unique(generator.integers(LENGTHS[name][number], size=3))
        frames = list(decoder.frames(str(number), camera, steps.tolist()))
        means = [pixels.mean((0, 1)) for pixels in frames]
        np.testing.assert_allclose(means, expected[f"{number}/mean/{camera}"][steps], atol=1e-9)


# --------------------------------------------------------------------------- v2.1, made here


def png(step: int, size=(48, 64)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame(step, size)).save(file, "PNG")
    return file.getvalue()


def rows(index: int, length: int, **columns) -> pa.Table:
    """Rows of an episode: state [T, 3], action [T, 2] and the bookkeeping of LeRobot."""
    steps = np.arange(length)
    state = (100 * index + steps[:, None] + np.arange(3) / 4).astype(np.float32)
    table = {
        "observation.state": pa.array(state.tolist(), pa.list_(pa.float32(), 3)),
        "action": pa.array((-state[:, :2]).tolist(), pa.list_(pa.float32(), 2)),
        "observation.grip": pa.array((steps % 2 == 0).tolist()),
        "timestamp": pa.array((steps / FPS).astype(np.float32)),
        "frame_index": pa.array(steps),
        "episode_index": pa.array(np.full(length, index)),
        "index": pa.array(steps + 1000 * index),
        "task_index": pa.array(np.full(length, index % 2)),
        "next.reward": pa.array(np.zeros(length, np.float32)),
        **columns,
    }
    return pa.table({key: values for key, values in table.items() if values is not None})


def write_rows(root: Path, index: int, length: int, **columns) -> Path:
    path = root / f"data/chunk-{index // 3:03d}/episode_{index:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows(index, length, **columns), path)
    return path


def video_of(root: Path, index: int, camera: str = "front") -> Path:
    folder = root / f"videos/chunk-{index // 3:03d}/observation.images.{camera}"
    return folder / f"episode_{index:06d}.mp4"


def feature(dtype: str, *shape: int, **info) -> dict:
    return {"dtype": dtype, "shape": list(shape), "names": None, **({"info": info} if info else {})}


def write_dataset(root: Path, lengths=(20, 12, 16, 5), cameras=("front", "wrist"), **info) -> Path:
    """A data set in v2.1: episodes in chunks of 3, cameras of 48 x 64 and 32 x 48."""
    (root / "meta").mkdir(parents=True)
    numbers = {
        "observation.state": feature("float32", 3),
        "action": feature("float32", 2),
        "observation.grip": feature("bool", 1),
        "timestamp": feature("float32", 1),
        "next.reward": feature("float32", 1),
        **{f"{k}_index": feature("int64", 1) for k in ("frame", "episode", "task")},
        "index": feature("int64", 1),
    }
    videos = {f"observation.images.{c}": feature("video", 480, 640, 3) for c in cameras}
    content = {
        "codebase_version": "v2.1",
        "fps": FPS,
        "chunks_size": 3,
        "splits": {"train": "0:3", "test": "3:4"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": {**videos, **numbers},
        **info,
    }
    (root / "meta" / "info.json").write_text(json.dumps(content))
    write_lines(root / "meta" / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in TASKS])
    lines = [
        {"episode_index": i, "tasks": [TASKS[i % 2][1]], "length": n, "path": f"lab{i}/run"}
        for i, n in enumerate(lengths)
    ]
    write_lines(root / "meta" / "episodes.jsonl", lines)
    for index, length in enumerate(lengths):
        write_rows(root, index, length)
        for number, camera in enumerate(cameras):
            size = (48, 64) if number == 0 else (32, 48)
            write_video(video_of(root, index, camera), max(1, length), FPS, size, first=7 * index)
    return root


TASKS = ((0, "lift the cup"), (1, "Öffne die Tür"))


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def change_info(root: Path, change) -> None:
    path = root / "meta" / "info.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("made") / "cups")


@pytest.fixture
def dataset(made, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "cups"))


def test_one_file_per_episode_is_read(made):
    source = LerobotSource(made)
    assert source.cameras == {c: f"observation.images.{c}" for c in ("front", "wrist")}
    assert (source.name, source.schema.hz, source.schema.language) == ("cups", FPS, ("task",))
    episodes, problems = read(source)
    assert problems == [] and [e.length for e in episodes] == [20, 12, 16, 5]
    decoder = source.decoder()
    for index, episode in enumerate(episodes):
        steps = np.arange(episode.length)
        state = 100 * index + steps[:, None] + np.arange(3) / 4
        np.testing.assert_array_equal(episode.signals["state"], state)
        np.testing.assert_array_equal(episode.signals["action"], -state[:, :2])
        np.testing.assert_array_equal(episode.signals["grip"], steps % 2 == 0)
        assert set(episode.signals) == {"state", "action", "grip"}
        assert episode.texts == (TASKS[index % 2][1],)
        # info.json says 480 x 640.
        assert [episode.pictures[c].size for c in source.cameras] == [(48, 64), (32, 48)]
        assert episode.origin.split == ("test" if index == 3 else "train")
        for camera in source.cameras:
            for step, pixels in enumerate(decoder.frames(episode.key, camera, steps.tolist())):
                assert shows(pixels, 7 * index + step)
    assert len({e.pictures["front"].checksum for e in episodes}) == 4


def test_v2_0_and_a_list_of_chunks_are_read(dataset):
    change_info(dataset, lambda info: info.update(codebase_version="v2.0"))
    assert len(read(LerobotSource(dataset))[0]) == 4


def test_pictures_in_rows_have_another_checksum_if_one_is_replaced(tmp_path):
    root = write_dataset(tmp_path / "cups", (6, 4), cameras=())
    key = "observation.images.top"
    change_info(root, lambda info: info["features"].update({key: feature("image", 480, 640, 3)}))
    checksums = []
    for replaced in (2, 5):
        for index, length in enumerate((6, 4)):
            shown = [10 * index + (step if step != 2 else replaced) for step in range(length)]
            values = [{"bytes": png(step), "path": f"{step}.png"} for step in shown]
            write_rows(root, index, length, **{key: pa.array(values)})
        episodes, problems = read(LerobotSource(root))
        assert problems == [] and [e.pictures["top"].size for e in episodes] == [(48, 64)] * 2
        checksums.append([e.pictures["top"].checksum for e in episodes])
    assert checksums[0][0] != checksums[1][0] and checksums[0][1] != checksums[1][1]
    decoder = LerobotSource(root).decoder()
    frames = list(decoder.frames("1", "top", [0, 2, 3]))
    assert all(shows(f, s) for f, s in zip(frames, (10, 15, 13), strict=True))


def test_other_pictures_have_other_checksums(dataset):
    before, _ = read(LerobotSource(dataset))
    write_video(video_of(dataset, 1), 12, FPS, first=50)
    after, _ = read(LerobotSource(dataset))
    changed = [
        (b.key, c)
        for b, a in zip(before, after, strict=True)
        for c in b.pictures
        if a.pictures[c].checksum != b.pictures[c].checksum
    ]
    assert changed == [("1", "front")]


def test_the_stamp_changes_with_the_files(dataset):
    source = LerobotSource(dataset)
    before = source.stamp()
    assert before == LerobotSource(dataset).stamp() and source.is_small()
    video_of(dataset, 3).unlink()
    assert LerobotSource(dataset).stamp() != before


# --------------------------------------------------------------------------- schemas


def test_a_schema_renames_cameras_and_names_what_else_is_read(dataset):
    schema = Schema(
        cameras={"eye": "observation.images.wrist"},
        signals=("next.reward",),
        recording=RecordingSchema(key="path", pattern=r"(?P<lab>\w+)/", session="{lab}"),
        splits=("train",),
        hz=5.0,
    )
    source = LerobotSource(dataset, schema)
    assert source.cameras == {"eye": "observation.images.wrist"} and source.schema.hz == 5.0
    episodes, problems = read(source)
    assert problems == [] and len(episodes) == 3
    assert set(episodes[0].signals) == {"state", "action", "grip", "next.reward"}
    assert set(episodes[0].pictures) == {"eye"}
    assert [e.origin.session for e in episodes] == ["lab0", "lab1", "lab2"]
    (pixels,) = source.decoder().frames("2", "eye", [3])  # at 15 frames per second, not 5
    assert shows(pixels, 17)
    again = LerobotSource(dataset, source.schema)  # as an index opens it
    assert again.schema == source.schema


def test_a_flag_says_which_episodes_have_a_camera(dataset):
    write_rows(dataset, 1, 12, **{"observation.grip": pa.array([False] * 12)})
    source = LerobotSource(dataset, Schema(present={"wrist": "observation.grip"}))
    episodes, problems = read(source)
    assert problems == []
    cameras = [set(e.pictures) for e in episodes]
    assert cameras == [{"front", "wrist"}, {"front"}, {"front", "wrist"}, {"front", "wrist"}]


def test_texts_of_rows_are_instructions(dataset):
    kind = {"language_instruction": feature("string", 1)}
    change_info(dataset, lambda info: info["features"].update(kind))
    for index, length in enumerate((20, 12, 16, 5)):
        write_rows(dataset, index, length, language_instruction=pa.array([f"do {index}"] * length))
    source = LerobotSource(dataset)
    assert source.schema.language == ("language_instruction",)
    assert [e.texts for e in read(source)[0]] == [(f"do {index}",) for index in range(4)]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Schema(cameras={"eye": "observation.images.frnt"}), "mean 'observation.images.front'"),
        (Schema(state=("stat",)), "state of the schema='stat' is unknown; did you mean 'state'"),
        (Schema(signals=("actoin",)), "signals of the schema='actoin'.*did you mean 'action'"),
        (Schema(present={"wrist": "has_wrist"}), "present of the schema='has_wrist'"),
        (Schema(language=("tasc",)), "did you mean 'task'"),
        (Schema(splits=("trian",)), "did you mean 'train'"),
        (Schema(recording=RecordingSchema(key="pth")), "recording.key of.*did you mean 'path'"),
    ],
)
def test_a_wrong_key_of_a_schema_gets_the_nearest_name(made, schema, message):
    with pytest.raises(UserError, match=f"cups: .*{message}"):
        LerobotSource(made, schema)


# --------------------------------------------------------------------------- bad input


def assert_left_out(root: Path, index: int, sentence: str) -> list[Episode]:
    """Only the episode `index` is left out, with this sentence. Returns the others."""
    episodes, problems = read(LerobotSource(root))
    assert len(episodes) + len(problems) == 4
    assert [e.key for e in episodes] == [str(i) for i in range(4) if i != index]
    (problem,) = problems
    assert f"episode_{index:06d}: " in problem and sentence in problem, problem
    return episodes


def test_missing_files_are_named_and_the_others_survive(dataset):
    video_of(dataset, 1, "wrist").unlink()
    assert_left_out(dataset, 1, "wrist/episode_000001.mp4: episode_000001: no such file")
    (dataset / "data/chunk-000/episode_000002.parquet").unlink()
    episodes, problems = read(LerobotSource(dataset))
    assert [e.key for e in episodes] == ["0", "3"]
    assert problems[1] == "data/chunk-000/episode_000002.parquet: episode_000002: no such file"


def test_a_camera_that_was_never_downloaded_is_no_camera(dataset):
    for index in range(4):
        video_of(dataset, index, "wrist").unlink()
    source = LerobotSource(dataset)
    assert list(source.cameras) == ["front"] and len(read(source)[0]) == 4
    for index in range(4):
        video_of(dataset, index).unlink()
    with pytest.raises(UserError, match=r"has no pictures; .*episode_000000.mp4 is missing"):
        LerobotSource(dataset)


def test_truncated_files_are_named(dataset):
    cut_off(video_of(dataset, 2), 0.3)
    assert_left_out(dataset, 2, "is no readable video")
    cut_off(dataset / "data/chunk-000/episode_000000.parquet", 0.5)
    _, problems = read(LerobotSource(dataset))
    assert "episode_000000: is no readable parquet file" in problems[0]


def test_a_video_shorter_than_its_rows_is_named(dataset):
    write_video(video_of(dataset, 1), 11, FPS)
    assert_left_out(dataset, 1, "the video holds only 11 of the 12 frames")
    message = r"episode_000001.mp4: episode_000001, front, step 11: the video has no frame at 0.733"
    with pytest.raises(UserError, match=message):
        list(LerobotSource(dataset).decoder().frames("1", "front", range(12)))


def test_a_video_longer_than_its_rows_is_fine(dataset):
    write_video(video_of(dataset, 1), 14, FPS)
    assert len(read(LerobotSource(dataset))[0]) == 4
    with pytest.raises(UserError, match="step 12: the episode has only 12 steps"):
        list(LerobotSource(dataset).decoder().frames("1", "front", [11, 12]))


@pytest.mark.parametrize("fps", [10, 30])
def test_another_rate_is_named(dataset, fps):
    write_video(video_of(dataset, 1), 40, fps)
    sentence = f"the video has {fps} frames per second, the data set 15"
    assert_left_out(dataset, 1, sentence)
    with pytest.raises(UserError, match=f"episode_000001, front, step 0: {sentence}"):
        list(LerobotSource(dataset).decoder().frames("1", "front", [0]))


def test_timestamps_of_another_rate_are_named(dataset):
    write_rows(dataset, 1, 12, timestamp=pa.array(np.arange(12, dtype=np.float32) / 10))
    assert_left_out(dataset, 1, "its timestamps are not those of 15 steps per second")


def test_wrong_shapes_are_named(dataset):
    values = pa.array([[1.0, 2.0]] * 11 + [[1.0]], pa.list_(pa.float32()))
    write_rows(dataset, 1, 12, action=values)
    assert_left_out(dataset, 1, "action: its rows hold different numbers of values: 2, 1")
    write_rows(dataset, 1, 12, action=pa.array(["a"] * 12))
    assert_left_out(dataset, 1, "action holds no numbers but string")


def test_a_missing_column_and_another_width_are_left_to_the_index(dataset):
    write_rows(dataset, 1, 12, action=None)
    write_rows(dataset, 2, 16, action=pa.array([[1.0] * 5] * 16))
    episodes, problems = read(LerobotSource(dataset))
    assert problems == []
    assert set(episodes[1].signals) == {"state", "grip"}
    assert episodes[2].signals["action"].shape == (16, 5)


def test_missing_numbers_are_nan(dataset):
    values = [[1.0, 2.0, 3.0]] * 11 + [[1.0, None, float("inf")]]
    write_rows(dataset, 1, 12, **{"observation.state": pa.array(values)})
    episodes, problems = read(LerobotSource(dataset))
    assert problems == []
    assert np.isnan(episodes[1].signals["state"][11, 1])
    assert np.isinf(episodes[1].signals["state"][11, 2])


def test_nested_lists_are_flattened_and_large_fields_skipped(dataset):
    def add(info):
        info["features"]["observation.box"] = feature("float64", 2, 2)
        info["features"]["observation.embedding"] = feature("float32", 512)

    change_info(dataset, add)
    box = pa.array([[[1.0, 2.0], [3.0, 4.0]]] * 12)
    large = pa.array(np.ones((12, 512)).tolist())
    write_rows(dataset, 1, 12, **{"observation.box": box, "observation.embedding": large})
    signals = read(LerobotSource(dataset))[0][1].signals
    np.testing.assert_array_equal(signals["box"], [[1, 2, 3, 4]] * 12)
    assert "embedding" not in signals
    named = LerobotSource(dataset, Schema(signals=("observation.embedding",)))
    assert read(named)[0][1].signals["embedding"].shape == (12, 512)


def test_numbers_of_rows_that_meta_does_not_promise_are_named(dataset):
    write_rows(dataset, 1, 9)
    assert_left_out(dataset, 1, "9 rows, 12 steps according to meta")


def test_an_empty_episode_is_named(tmp_path):
    root = write_dataset(tmp_path / "cups", (4, 0, 5, 3), cameras=("front",))
    assert_left_out(root, 1, "the episode has no steps")


def test_damaged_pictures_in_rows_are_named(tmp_path):
    root = write_dataset(tmp_path / "cups", (4, 4, 4, 4), cameras=())
    key = "observation.images.top"
    change_info(root, lambda info: info["features"].update({key: feature("image", 48, 64, 3)}))
    good = [{"bytes": png(step), "path": ""} for step in range(4)]

    def write(index, values):
        write_rows(root, index, 4, **{key: pa.array(values)})

    for index in range(4):
        write(index, good)
    write(1, [*good[:3], {"bytes": png(3, (32, 64)), "path": ""}])
    assert_left_out(root, 1, f"{key} at step 3 has (32, 64) (height, width), at step 0 (48, 64)")
    write(1, [*good[:3], {"bytes": None, "path": "3.png"}])
    assert_left_out(root, 1, f"{key} holds no picture in row 3")
    write(1, [*good[:3], {"bytes": b"GIF89a" + bytes(50), "path": ""}])
    assert_left_out(root, 1, "neither JPEG nor PNG")
    write(1, [*good[:3], {"bytes": png(3)[:-20], "path": ""}])
    with pytest.raises(UserError, match=r"000001.parquet: episode_000001, top, step 3: .*PNG"):
        list(LerobotSource(root).decoder().frames("1", "top", range(4)))


def test_damage_in_v3_costs_only_the_episodes_that_it_hits(tmp_path):
    root = Path(shutil.copytree(REFERENCE / "lerobot_v3_video", tmp_path / "damaged"))
    path = next((root / "meta" / "episodes").rglob("*.parquet"))
    table = pq.read_table(path).to_pylist()
    table[1]["videos/observation.images.wrist/file_index"] = None  # has no such camera
    table[2]["videos/observation.images.front/file_index"] = 7  # promises too much
    table[3]["data/file_index"] = 7
    table[4]["length"] = 26
    pq.write_table(pa.Table.from_pylist(table), path)
    video = root / "videos/observation.images.front/chunk-000/file-000.mp4"
    write_video(video, 180, FPS, (180, 320))  # 22 frames of the last episode are missing
    episodes, problems = read(LerobotSource(root))
    assert [(e.key, set(e.pictures)) for e in episodes] == [
        ("0", {"front", "wrist"}),
        ("1", {"front"}),
    ]
    assert len(problems) == 4
    for problem, sentence in zip(
        problems,
        [
            "file-007.mp4: episode_000002: no such file",
            "data/chunk-000/file-007.parquet: episode_000003: no such file",
            "episode_000004: 25 rows, 26 steps according to meta",
            "file-000.mp4: episode_000005: the video holds only 22 of the 44 frames",
        ],
        strict=True,
    ):
        assert sentence in problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version='v1.6'; v2.0, v2.1 and v3.0 are read"),
        ({"fps": 0}, "fps=0.0 must be a number above 0"),
        ({"features": None}, "info.json: is damaged"),
        ({"data_path": "../../{episode_index}.parquet"}, "leads out of the data set"),
        ({"video_path": "/etc/{video_key}"}, "leads out of the data set"),
        ({"data_path": "{nothing}.parquet"}, "episodes.jsonl: has a damaged row: KeyError"),
    ],
)
def test_damaged_info_is_named(dataset, change, message):
    change_info(dataset, lambda info: info.update(change))
    with pytest.raises(UserError, match=message):
        LerobotSource(dataset)


def test_damaged_lists_are_named(dataset):
    path = dataset / "meta" / "episodes.jsonl"
    text = path.read_text()
    for content, message in [
        (text + "{", "episodes.jsonl: is not readable"),
        (text + "[]\n", "line 5 is no mapping"),
        (text + text.splitlines()[0], "lists the episode 0 twice"),
        ('{"episode_index": 0}\n', "damaged row: KeyError.*length"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            LerobotSource(dataset)
    path.unlink()
    with pytest.raises(UserError, match="episodes.jsonl: is not readable"):
        LerobotSource(dataset)
    assert LerobotSource.recognises(dataset)
    assert not LerobotSource.recognises(dataset.parent)


@pytest.mark.parametrize("kind", ["missing", "pipe", "folder"])
def test_a_data_set_without_its_info_is_not_read_as_plain_videos(dataset, kind):
    info = dataset / "meta" / "info.json"
    info.unlink()
    if kind == "pipe":
        os.mkfifo(info)
    elif kind == "folder":
        info.mkdir()
    what = "is missing" if kind == "missing" else "is no regular file"
    with pytest.raises(UserError, match=rf"info\.json: {what}.*give .*videos$"):
        open_source(dataset)
    assert open_source(dataset / "videos").kind == "media"
    shutil.rmtree(dataset / "meta")
    with pytest.raises(UserError, match=r"info\.json: is missing"):
        open_source(dataset)
    shutil.rmtree(dataset / "data")  # nothing but videos is left
    assert open_source(dataset).kind == "media"
