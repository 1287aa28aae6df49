import os

import numpy as np
import pytest

from mcr.data.sources.video import VideoReader, VideoReaders, file_checksum, scan_video
from tests.write_video import cut_off, shows, write_video

FPS = 15
TOLERANCE = 0.45 / FPS
CODECS = [
    ("a.mp4", "libx264", {"g": "12", "bf": "3"}),
    ("b.mp4", "libsvtav1", {"g": "2"}),
    ("c.mkv", "libx264", {"g": "250"}),
    ("d.mov", "mpeg4", {}),
    ("e.avi", "libx264", {"bf": "2"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CODECS)
def test_each_frame_is_found_in_any_order(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, 60, FPS, codec=codec, **options)
    scan = scan_video(path)
    assert scan.size == (48, 64) and scan.problem == ""
    np.testing.assert_allclose(scan.times, np.arange(60) / FPS, atol=1e-3)
    reader = VideoReader(path)
    forth = list(range(60))
    for step in [*forth, *reversed(forth), 0, 59, 0, 30, 30, 31, 12, 58]:
        pixels = reader.frame(step / FPS, TOLERANCE)
        assert pixels.dtype == np.uint8 and pixels.shape == (48, 64, 3)
        assert shows(pixels, step) and not shows(pixels, step + 1)
    reader.close()


def test_decoding_goes_on_without_a_seek_and_seeks_over_a_long_way(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 300, FPS, g="5")
    reader, seeks = VideoReader(path, threads=1), []
    seek = reader._seek
    monkeypatch.setattr(reader, "_seek", lambda *where: (seeks.append(where[0]), seek(*where)))
    for step in [0, 1, 2, 9, 9, 20]:
        assert shows(reader.frame(step / FPS, TOLERANCE), step)
    assert not seeks
    for step in [250, 251, 3, 4]:
        assert shows(reader.frame(step / FPS, TOLERANCE), step)
    assert seeks == [250 / FPS, 3 / FPS]


def test_a_single_keyframe_is_not_sought_again_and_again(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 200, FPS, g="500", sc_threshold="0")
    reader, seeks = VideoReader(path), []
    seek = reader._seek
    monkeypatch.setattr(reader, "_seek", lambda *where: (seeks.append(where[0]), seek(*where)))
    for step in range(0, 200, 20):
        assert shows(reader.frame(step / FPS, TOLERANCE), step)
    assert len(seeks) <= 3


def test_pixels_are_those_of_pyav(tmp_path):
    import av

    path = write_video(tmp_path / "a.mp4", 12, FPS)
    reader = VideoReader(path)
    with av.open(str(path)) as container:
        for step, expected in enumerate(container.decode(video=0)):
            pixels = reader.frame(step / FPS, TOLERANCE)
            np.testing.assert_array_equal(pixels, expected.to_ndarray(format="rgb24"))


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        VideoReader(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"this is text" * 100)
    with pytest.raises(ValueError, match="is no readable video .*Invalid data"):
        VideoReader(tmp_path / "b.mp4")
    os.mkfifo(tmp_path / "c.mp4")
    with pytest.raises(ValueError, match="is no regular file"):
        VideoReader(tmp_path / "c.mp4")
    path = write_video(tmp_path / "d.mp4", 30)  # its table of frames comes last
    path.write_bytes(path.read_bytes().partition(b"moov")[0])
    with pytest.raises(ValueError, match="is no readable video"):
        scan_video(path)


def test_a_video_that_is_cut_off_gives_the_frames_before(tmp_path):
    path = cut_off(write_video(tmp_path / "a.mp4", 90, FPS, faststart=True, g="10", bf="0"), 0.6)
    scan = scan_video(path)
    whole = len(scan.times)
    assert (
        10 < whole < 80 and scan.problem == f"the video is cut off: {90 - whole} frames are missing"
    )
    scan.require(0.0, whole, FPS)
    with pytest.raises(ValueError, match=f"holds only {whole} of the 90 frames"):
        scan.require(0.0, 90, FPS)
    reader = VideoReader(path)
    assert shows(reader.frame((whole - 1) / FPS, TOLERANCE), whole - 1)
    with pytest.raises(ValueError, match="no frame at|cannot be decoded"):
        reader.frame(80 / FPS, TOLERANCE)
    assert shows(reader.frame(5 / FPS, TOLERANCE), 5)  # it is still of use


def noise(step, size):
    return np.random.default_rng(step).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_a_damaged_frame_is_named_and_the_others_are_read(tmp_path):
    import av

    path = write_video(tmp_path / "a.mp4", 30, FPS, draw=noise, g="10", bf="0")
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][12]
        begin, size = packet.pos + 40, packet.size - 40
    data = bytearray(path.read_bytes())
    data[begin : begin + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    reader = VideoReader(path)
    reader.frame(11 / FPS, TOLERANCE)
    with pytest.raises(ValueError, match="the frame at 0.800 s is damaged"):
        reader.frame(12 / FPS, TOLERANCE)
    assert reader.frame(20 / FPS, TOLERANCE).shape == (48, 64, 3)


@pytest.mark.parametrize("fps", [10, 30])
def test_another_rate_is_named(tmp_path, fps):
    scan = scan_video(write_video(tmp_path / "a.mp4", 60, fps))
    with pytest.raises(ValueError, match=f"the video has {fps} frames per second, the data set 15"):
        scan.require(0.0, 20, FPS)


def test_missing_frames_in_the_middle_are_named(tmp_path):
    scan = scan_video(write_video(tmp_path / "a.mp4", 60, FPS))
    times = np.delete(scan.times, [20, 21])
    broken = type(scan)(scan.size, scan.rates, times, scan.checksum)
    broken.require(0.0, 20, FPS)
    broken.require(22 / FPS, 30, FPS)
    with pytest.raises(ValueError, match="no frame for step 10"):
        broken.require(10 / FPS, 20, FPS)


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    before = scan_video(path).checksum
    assert before == file_checksum(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert file_checksum(path) != before


def test_few_videos_stay_open(tmp_path):
    readers = VideoReaders(threads=1)
    paths = [write_video(tmp_path / f"{i}.mp4", 3, first=i) for i in range(12)]
    first = readers.open(paths[0])
    for i, path in enumerate(paths):
        assert shows(readers.open(path).frame(0.0, TOLERANCE), i)
    assert readers.open(paths[-1]) is readers.open(paths[-1])
    assert readers.open(paths[0]) is not first
    readers.close()
