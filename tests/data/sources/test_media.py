import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mcr.data import pictures
from mcr.data.episode import Episode
from mcr.data.schema import RecordingSchema, Schema
from mcr.data.sources.media import MediaSource
from mcr.errors import UserError
from tests.write_video import cut_off, frame, shows, write_video


def read(source):
    """All episodes of a source, and the sentences about those that are left out."""
    found = [e for part in source.parts() for e in pickle.loads(pickle.dumps(part)).episodes()]
    return [e for e in found if isinstance(e, Episode)], [e for e in found if isinstance(e, str)]


def write_pictures(folder: Path, length: int, suffix="png", size=(48, 64), first=0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(length):
        Image.fromarray(frame(first + step, size)).save(folder / f"{step}.{suffix}")
    return folder


def write_csv(
    path: Path, length: int, header="state_0,state_1,action_0,text", row="{0},{0}.5,-{0},go"
):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(row.format(step) for step in range(length))]) + "\n")
    return path


def assert_shows(source, episode, first=0):
    for camera, shown in episode.pictures.items():
        if shown.names is not None:
            files = [source.root / shown.file / name for name in shown.names]
            frames = [pictures.decode(file.read_bytes()) for file in files]
        else:
            frames = list(source.decoder().frames(episode.key, camera, range(episode.length)))
        assert len(frames) == episode.length
        assert all(shows(pixels, first + step) for step, pixels in enumerate(frames))
        assert {pixels.shape for pixels in frames} == {(*shown.size, 3)}


# --------------------------------------------------------------------------- without tables


def test_videos_are_episodes_in_natural_order(tmp_path):
    for name, length, size in [
        ("b/10.mp4", 9, (48, 64)),
        ("b/2.mkv", 7, (32, 48)),
        ("A.MP4", 5, (48, 64)),
    ]:
        write_video(tmp_path / name, length, 30, size)
    (tmp_path / "b" / "thumbnail.png").write_bytes(b"is no episode")
    (tmp_path / "b" / "._2.mp4").write_bytes(b"what macOS leaves")
    source = MediaSource(tmp_path)
    assert source.cameras == {"video": "video"} and source.schema.hz == 30
    episodes, problems = read(source)
    assert problems == [] and [e.origin.name for e in episodes] == ["A", "b_2", "b_10"]
    assert [e.length for e in episodes] == [5, 7, 9]
    assert all(e.signals == {} and e.texts == () for e in episodes)
    assert [e.origin.session for e in episodes] == ["A", "b_2", "b_10"]
    for episode in episodes:
        assert_shows(source, episode)


def test_names_keep_their_suffix_where_they_would_be_the_same(tmp_path):
    write_video(tmp_path / "a.mp4", 3)
    write_video(tmp_path / "a.mkv", 3)
    assert [e.origin.name for e in read(MediaSource(tmp_path))[0]] == ["a.mkv", "a.mp4"]


def test_one_video_is_a_data_set(tmp_path):
    path = write_video(tmp_path / "run.avi", 6)
    write_video(tmp_path / "other.mp4", 4)
    write_csv(tmp_path / "run.csv", 6)
    source = MediaSource(path)
    assert (source.path, source.root, source.name) == (path, tmp_path, "run")
    ((episode,), problems) = read(source)
    assert problems == [] and episode.key == "run.avi" and episode.origin.name == "run"
    assert set(episode.signals) == {"state", "action"}
    assert_shows(source, episode)


def test_folders_of_pictures_are_episodes(tmp_path):
    write_pictures(tmp_path / "run 10", 12)
    write_pictures(tmp_path / "run 2" / "cam", 3, "jpg", (32, 48))
    write_pictures(tmp_path / "run 2", 11, "JPEG")
    source = MediaSource(tmp_path)
    assert source.cameras == {"picture": "picture"} and source.decoder() is None
    episodes, problems = read(source)
    assert problems == []
    assert [e.origin.name for e in episodes] == ["run 2", "run 2_cam", "run 10"]
    assert episodes[2].pictures["picture"].names == tuple(f"{i}.png" for i in range(12))
    assert episodes[1].pictures["picture"].file == "run 2/cam"
    for episode in episodes:
        assert_shows(source, episode)


def test_pictures_in_the_folder_itself_are_an_episode_of_its_name(tmp_path):
    source = MediaSource(write_pictures(tmp_path / "run", 4))
    ((episode,), _) = read(source)
    assert (episode.key, episode.origin.name, episode.length) == (".", "run", 4)
    assert_shows(source, episode)


def test_other_pictures_have_another_checksum(tmp_path):
    write_pictures(tmp_path / "a", 4)
    write_pictures(tmp_path / "b", 4)
    first, second = read(MediaSource(tmp_path))[0]
    assert first.pictures["picture"].checksum == second.pictures["picture"].checksum
    Image.fromarray(frame(9)).save(tmp_path / "b" / "2.png")
    _, changed = read(MediaSource(tmp_path))[0]
    assert changed.pictures["picture"].checksum != second.pictures["picture"].checksum


def test_the_stamp_changes_with_the_files(tmp_path):
    write_pictures(tmp_path / "a", 4)
    write_csv(tmp_path / "a.csv", 4)
    stamps = [MediaSource(tmp_path).stamp()]
    assert stamps[0] == MediaSource(tmp_path).stamp() and MediaSource(tmp_path).is_small()
    (tmp_path / "a" / "3.png").rename(tmp_path / "a" / "4.png")
    stamps.append(MediaSource(tmp_path).stamp())
    write_csv(tmp_path / "a.csv", 5)
    stamps.append(MediaSource(tmp_path).stamp())
    assert stamps[0] != stamps[1] != stamps[2]


def test_the_path_can_tell_the_session(tmp_path):
    for name in ("monday/1", "monday/2", "friday/1"):
        write_video(tmp_path / f"{name}.mp4", 3)
    recording = RecordingSchema(pattern=r"(?P<session>\w+)/")
    episodes, _ = read(MediaSource(tmp_path, Schema(recording=recording)))
    assert [e.origin.session for e in episodes] == ["friday", "monday", "monday"]


def test_many_episodes_are_several_parts(tmp_path):
    for number in range(20):
        write_pictures(tmp_path / str(number), 1)
    source = MediaSource(tmp_path)
    assert [part.size for part in source.parts()] == [16, 4]
    assert [e.key for e in read(source)[0]] == [str(number) for number in range(20)]


# --------------------------------------------------------------------------- with tables


def test_a_table_beside_an_episode_gives_signals_and_text(tmp_path):
    write_video(tmp_path / "1.mp4", 8)
    write_csv(tmp_path / "1.csv", 8)
    write_video(tmp_path / "2.mp4", 5)
    columns = {
        "state": pa.array([[s, s + 0.5] for s in range(5)]),
        "action.0": pa.array(np.arange(0, -5, -1)),
        "text": ["stop"] * 5,
    }
    pq.write_table(pa.table(columns), tmp_path / "2.parquet")
    source = MediaSource(tmp_path)
    assert source.schema.language == ("text",)
    episodes, problems = read(source)
    assert problems == [] and [e.texts for e in episodes] == [("go",), ("stop",)]
    for episode in episodes:
        steps = np.arange(episode.length, dtype=np.float32)
        assert set(episode.signals) == {"state", "action"}
        np.testing.assert_array_equal(episode.signals["state"], np.c_[steps, steps + 0.5])
        np.testing.assert_array_equal(episode.signals["action"], -steps[:, None])
        assert {v.dtype for v in episode.signals.values()} == {np.dtype(np.float32)}


def test_columns_are_joined(tmp_path):
    write_pictures(tmp_path / "a", 2)
    header = (
        "timestamp,joint_10,joint_9,action_x,action.grip,action_y,state.1,state.0,force,ok,note"
    )
    write_csv(tmp_path / "a.csv", 2, header, "{0},10,9,1,2,3,41,40,0.1,True,fine")
    (episode,), problems = read(MediaSource(tmp_path))
    assert problems == []
    expected = {
        "joint": [[9, 10]] * 2,
        "action": [[1, 2, 3]] * 2,
        "state": [[40, 41]] * 2,
        "force": np.float32([0.1, 0.1]),
        "ok": [1, 1],
    }
    assert set(episode.signals) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(episode.signals[name], values)
    named = MediaSource(tmp_path, Schema(signals=("timestamp",)))
    np.testing.assert_array_equal(read(named)[0][0].signals["timestamp"], [0, 1])


def test_numbers_in_csv_are_exact(tmp_path):
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    write_pictures(tmp_path / "a", 50, size=(8, 8))
    (tmp_path / "a.csv").write_text("state_0\n" + "\n".join(map(str, values)) + "\n")
    (episode,), _ = read(MediaSource(tmp_path))
    np.testing.assert_array_equal(episode.signals["state"][:, 0], values)


def test_a_folder_with_signals_is_one_episode_of_several_cameras(tmp_path):
    for name, length in [("run_2", 6), ("run_10", 9)]:
        write_video(tmp_path / name / "front.mp4", length)
        write_video(tmp_path / name / "wrist.mp4", length, size=(32, 48))
        write_pictures(tmp_path / name / "top", length, size=(24, 32))
        write_csv(tmp_path / name / "signals.csv", length)
    source = MediaSource(tmp_path)
    assert list(source.cameras) == ["front", "wrist", "top"]
    episodes, problems = read(source)
    assert problems == [] and [e.key for e in episodes] == ["run_2", "run_10"]
    for episode, length in zip(episodes, (6, 9), strict=True):
        sizes = {camera: shown.size for camera, shown in episode.pictures.items()}
        assert sizes == {"front": (48, 64), "wrist": (32, 48), "top": (24, 32)}
        assert episode.length == len(episode.signals["action"]) == length
        assert_shows(source, episode)
        frames = source.decoder().frames(episode.key, "top", [1, 4])  # an index needs one way
        assert [shows(p, s) for p, s in zip(frames, (1, 4), strict=True)] == [True, True]
    renamed = MediaSource(tmp_path, Schema(cameras={"eye": "wrist"}))
    assert set(read(renamed)[0][0].pictures) == {"eye"}
    assert next(renamed.decoder().frames("run_2", "eye", [2])).shape == (32, 48, 3)


def test_pictures_beside_signals_are_one_episode(tmp_path):
    write_pictures(tmp_path / "run", 4)
    write_csv(tmp_path / "run" / "signals.csv", 4)
    (episode,), problems = read(MediaSource(tmp_path))
    assert problems == [] and set(episode.pictures) == {"picture"} and "state" in episode.signals


def test_a_flag_says_which_episodes_have_a_camera(tmp_path):
    for name, flag in (("a", 1), ("b", 0)):
        write_video(tmp_path / name / "front.mp4", 3)
        write_video(tmp_path / name / "wrist.mp4", 3)
        write_csv(tmp_path / name / "signals.csv", 3, "has_wrist", str(flag))
    episodes, _ = read(MediaSource(tmp_path, Schema(present={"wrist": "has_wrist"})))
    assert [set(e.pictures) for e in episodes] == [{"front", "wrist"}, {"front"}]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Schema(cameras={"eye": "vidoe"}), "cameras of the schema='vidoe'.*'video'"),
        (Schema(state=("joints",)), "state of the schema='joints' is unknown.*action, state"),
        (Schema(language=("txt",)), "language of the schema='txt'.*did you mean 'text'"),
    ],
)
def test_a_wrong_key_of_a_schema_gets_the_nearest_name(tmp_path, schema, message):
    write_video(tmp_path / "1.mp4", 3)
    write_csv(tmp_path / "1.csv", 3)
    with pytest.raises(UserError, match=message):
        MediaSource(tmp_path, schema)
    assert MediaSource(tmp_path, MediaSource(tmp_path).schema).schema.language == ("text",)


# --------------------------------------------------------------------------- bad input


def assert_left_out(root: Path, sentence: str, others=("good.mp4",)) -> None:
    episodes, problems = read(MediaSource(root))
    assert [e.key for e in episodes] == list(others)
    (problem,) = problems
    assert sentence in problem, problem


@pytest.fixture
def good(tmp_path):
    """A folder with a good episode of 4 steps."""
    write_video(tmp_path / "good.mp4", 4)
    write_csv(tmp_path / "good.csv", 4)
    return tmp_path


def test_truncated_videos_are_named(good):
    path = write_video(good / "bad.mp4", 90, faststart=True, g="10")
    cut_off(path, 0.6)
    assert_left_out(good, "bad.mp4: bad.mp4: the video is cut off: ")
    path.write_bytes(b"")
    assert_left_out(good, "bad.mp4: bad.mp4: is no readable video")
    os.remove(path)
    os.mkfifo(path)
    assert_left_out(good, "bad.mp4: bad.mp4: is no regular file")


def test_lengths_that_differ_are_named(good):
    write_video(good / "bad.mp4", 7)
    write_csv(good / "bad.csv", 8)
    assert_left_out(good, "bad.mp4: has different lengths: 8 in bad.csv, 7 in bad.mp4")
    write_csv(good / "bad.csv", 0)
    assert_left_out(good, "bad.mp4: bad.csv: has no rows")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "bad.csv: is no readable table"),
        (b"state_0\n\xff\xfe\n", "bad.csv: is no readable table"),
        (b'state_0\n"1\n2\n3\n4\n', "bad.csv: is no readable table"),
        (b"state_0,state_1\n1,x\n2,3\n3,4\n4,5\n", "the column state_1 holds texts such as 'x'"),
    ],
)
def test_damaged_tables_are_named(good, content, sentence):
    write_video(good / "bad.mp4", 4)
    (good / "bad.csv").write_bytes(content)
    assert_left_out(good, f"bad.mp4: bad.csv: {sentence.removeprefix('bad.csv: ')}")


def test_damaged_parquet_and_two_tables_are_named(good):
    write_video(good / "bad.mp4", 4)
    (good / "bad.parquet").write_bytes(b"PAR1 and no more")
    assert_left_out(good, "bad.mp4: bad.parquet: is no readable parquet file")
    write_csv(good / "bad.csv", 4)
    assert_left_out(good, "bad.mp4: has the tables bad.csv and bad.parquet; keep one")


def test_missing_numbers_are_nan(good):
    (good / "good.csv").write_text("state_0,action_0\n1,1\n,2\n3,3\n4,inf\n")
    (episode,), problems = read(MediaSource(good))
    assert problems == [] and np.isnan(episode.signals["state"][1, 0])
    assert np.isinf(episode.signals["action"][3, 0])


def test_a_camera_that_vanishes_is_absent_and_the_last_one_is_named(tmp_path):
    for name in ("a", "b", "c"):
        write_csv(tmp_path / name / "signals.csv", 3)
        write_video(tmp_path / name / "front.mp4", 3)
        write_video(tmp_path / name / "wrist.mp4", 3)
    (tmp_path / "b" / "front.mp4").unlink()
    (tmp_path / "c" / "front.mp4").unlink()
    (tmp_path / "c" / "wrist.mp4").unlink()
    episodes, problems = read(MediaSource(tmp_path))
    assert [set(e.pictures) for e in episodes] == [{"front", "wrist"}, {"wrist"}]
    assert problems == ["c: holds no videos and no pictures"]


def test_damaged_pictures_are_named(tmp_path):
    write_pictures(tmp_path / "good", 3)
    write_pictures(tmp_path / "bad", 3)
    (tmp_path / "bad" / "1.png").write_bytes(b"GIF89a and so on")
    assert_left_out(tmp_path, "bad: 1.png: neither JPEG nor PNG", ["good"])
    Image.fromarray(frame(1, (32, 64))).save(tmp_path / "bad" / "1.png")
    assert_left_out(
        tmp_path, "bad: 1.png has (32, 64) (height, width), 0.png has (48, 64)", ["good"]
    )


def test_unsafe_names_are_named(good):
    write_video(good / "a\tb.mp4", 3)
    assert_left_out(good, "has an unsafe component 'a\\tb'")


def test_a_frame_that_cannot_be_decoded_is_named(good):
    decoder = MediaSource(good).decoder()
    with pytest.raises(UserError, match="good.mp4: episode good.mp4, video, step 4: "):
        list(decoder.frames("good.mp4", "video", [3, 4]))
    decoder.close()


def test_what_holds_no_media_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert not MediaSource.recognises(tmp_path)
    assert not MediaSource.recognises(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="holds no videos and no pictures"):
        MediaSource(tmp_path)
    write_video(tmp_path / "deep" / "er" / "a.mp4", 2)
    assert MediaSource.recognises(tmp_path)
