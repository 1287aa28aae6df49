"""Recordings: each format gives its frames in order, or a clear error."""

from __future__ import annotations

import pickle
from pathlib import Path

import av
import h5py
import numpy as np
import pytest

from mcr.data.pictures import decode, encode_png
from mcr.errors import UserError
from mcr.features.recordings import open_recordings, require_cameras
from tests.episodes import read_episodes

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (12, 20, 30, 3), dtype=np.uint8)


def frames_of(recordings, episode=0, camera=None):
    return np.stack(list(recordings.frames(episode, camera or recordings.cameras[0])))


def write_hdf5(path: Path, demos: dict[str, dict[str, np.ndarray]]) -> Path:
    with h5py.File(path, "w") as file:
        for name, observations in demos.items():
            for key, values in observations.items():
                file.create_dataset(f"data/{name}/obs/{key}", data=values)
            length = len(next(iter(observations.values())))
            file.create_dataset(f"data/{name}/actions", data=np.zeros((length, 7)))
    return path


def write_video(path: Path, frames: np.ndarray, codec: str = "ffv1") -> Path:
    """ffv1 in RGB is lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=15)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_shards_and_tree_are_the_same(shards, tree):
    from_shards, from_tree = open_recordings(shards), open_recordings(tree)
    assert from_shards.names == from_tree.names and from_shards.lengths == from_tree.lengths
    indexes = from_shards.index, from_tree.index
    assert indexes[0].signals_fingerprint == indexes[1].signals_fingerprint
    assert from_shards.fingerprint != from_tree.fingerprint  # JPEG and PNG are not the same bytes
    episode = next(e for e in read_episodes(shards) if e.origin.name == from_shards.names[1])
    expected = [decode(bytes(episode.encoded_frame("wrist_image_left", s))) for s in (0, 1)]
    for recordings in (from_shards, from_tree, pickle.loads(pickle.dumps(from_shards))):
        found = recordings.frames(1, "wrist_image_left")
        assert np.array_equal([next(found), next(found)], expected)


def test_hdf5(tmp_path):
    demos = {
        f"demo_{k}": {
            "agentview_image": np.roll(FRAMES, k, axis=0)[: k + 1],
            "wrist_image": FRAMES[: k + 1],
            "depth": np.zeros((k + 1, 20, 30, 1), np.uint8),
            "eef_pos": np.zeros((k + 1, 3)),
        }
        for k in (10, 2, 0)
    }
    recordings = open_recordings(write_hdf5(tmp_path / "image.hdf5", demos))
    assert recordings.names == sorted(demos) == ["demo_0", "demo_10", "demo_2"]
    assert recordings.lengths == [1, 11, 3]
    assert recordings.cameras == ("agentview_image", "wrist_image")
    for episode, name in enumerate(recordings.names):
        for camera in recordings.cameras:
            assert np.array_equal(frames_of(recordings, episode, camera), demos[name][camera])


def test_hdf5_is_refused(tmp_path):
    bad = {
        "lengths": (
            {"demo_0": {"a_image": FRAMES, "b_image": FRAMES[:5]}},
            "demo_0: has different lengths: 12 in obs/a_image, 5 in obs/b_image",
        ),
        "blind": ({"demo_0": {"eef_pos": np.zeros((3, 3))}}, "has no pictures"),
        "empty": ({}, "holds no episodes"),
    }
    for name, (demos, complaint) in bad.items():
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=complaint):
            open_recordings(write_hdf5(tmp_path / name / "bad.hdf5", demos))


def test_a_demonstration_without_pictures_is_left_out_with_a_reason(tmp_path):
    demos = {"demo_0": {"a_image": FRAMES}, "demo_1": {"eef_pos": np.zeros((12, 3))}}
    recordings = open_recordings(write_hdf5(tmp_path / "some.hdf5", demos))
    assert (recordings.names, recordings.cameras) == (["demo_0"], ("a_image",))
    (problem,) = recordings.index.info["problems"]
    assert "some.hdf5, data/demo_1: " in problem


def test_a_demonstration_is_read_with_the_cameras_that_it_has(tmp_path):
    demos = {"demo_0": {"a_image": FRAMES}, "demo_1": {"b_image": FRAMES}}
    recordings = open_recordings(write_hdf5(tmp_path / "some.hdf5", demos))
    assert (recordings.names, recordings.cameras) == (["demo_0", "demo_1"], ("a_image", "b_image"))
    assert [recordings.has(row, "b_image") for row in (0, 1)] == [False, True]
    with pytest.raises(UserError, match="demo_0 has no camera 'b_image'"):
        next(recordings.frames(0, "b_image"))


def test_videos(tmp_path):
    write_video(tmp_path / "take_10.mkv", FRAMES)
    write_video(tmp_path / "take_2.mkv", FRAMES[:5])
    (tmp_path / "notes.txt").touch()
    recordings = open_recordings(tmp_path)
    assert recordings.names == ["take_10", "take_2"] and recordings.lengths == [12, 5]
    assert np.array_equal(frames_of(recordings), FRAMES)
    one = open_recordings(tmp_path / "take_2.mkv")
    assert one.names == ["take_2"] and np.array_equal(frames_of(one), FRAMES[:5])


def test_a_compressed_video_keeps_all_frames(tmp_path):
    smooth = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, -1)
    frames = np.stack([np.roll(smooth, 3 * k, axis=1) for k in range(20)])
    recordings = open_recordings(write_video(tmp_path / "take.mp4", frames, "mpeg4"))
    assert recordings.lengths == [20]
    assert np.abs(frames_of(recordings).astype(int) - frames).mean() < 12


def test_videos_are_refused(tmp_path):
    path = write_video(tmp_path / "take.mkv", FRAMES.repeat(8, 1).repeat(8, 2))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    recordings = open_recordings(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"take\.mkv: "):
        frames_of(recordings)
    path.write_text("no video")
    with pytest.raises(UserError, match=r"take\.mkv: is no readable video"):
        open_recordings(tmp_path)


def test_pictures(tmp_path):
    for folder in ("b", "a/deep"):
        (tmp_path / folder).mkdir(parents=True)
    for step in range(12):
        (tmp_path / "b" / f"{step}.png").write_bytes(encode_png(FRAMES[step]))
    (tmp_path / "a/deep" / "x.png").write_bytes(encode_png(FRAMES[0, :10]))  # of another size
    recordings = open_recordings(tmp_path)
    assert recordings.names == ["a_deep", "b"] and recordings.lengths == [1, 12]
    assert np.array_equal(frames_of(recordings, 1), FRAMES)  # 2.png before 10.png
    (tmp_path / "b" / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"3\.png: neither JPEG nor PNG"):
        frames_of(recordings, 1)


def test_the_fingerprint_depends_on_the_content_only(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", {"demo_0": {"a_image": FRAMES}})
    before = open_recordings(path).fingerprint
    content = bytearray(path.read_bytes())
    path.touch()
    assert open_recordings(path).fingerprint == before
    content[content.index(FRAMES[3].tobytes())] ^= 1
    path.write_bytes(content)
    assert open_recordings(path).fingerprint != before


def test_other_things_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        open_recordings(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no data set of a known format"):
        open_recordings(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="holds no data set of a known format"):
        open_recordings(tmp_path / "a.txt")


def test_cameras_are_chosen_by_name(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", {"demo_0": {"a_image": FRAMES, "b_image": FRAMES}})
    recordings = open_recordings(path)
    assert require_cameras(recordings, ()) == ("a_image", "b_image")
    assert require_cameras(recordings, ["b_image"]) == ("b_image",)
    with pytest.raises(UserError, match="did you mean 'a_image'"):
        require_cameras(recordings, ["a_imge"])
