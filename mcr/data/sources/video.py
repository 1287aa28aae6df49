"""Video: the only module that decodes videos. It uses PyAV (extra `video`).

`scan_video` reads a video without decoding it and says which frames it holds. `VideoReader` decodes
frames by their time. The sources `lerobot.py` and `media.py` use both.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from mcr.data.pictures import MAX_PIXELS
from mcr.errors import import_extra

if TYPE_CHECKING:
    from av.container import InputContainer

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")
_MAX_OPEN = 8  # videos that `VideoReaders` keeps open
_BYTES_PER_READ = 1 << 22
_SHORT_WAY_S = 1.0  # a frame that lies this far ahead is reached without a seek
_RATE_TOLERANCE = 0.02  # relative; 29.97 counts as 30
FRAME_TOLERANCE = 0.45  # of the time between two frames; what is farther away is another frame


@dataclass(frozen=True)
class VideoScan:
    """What a video file holds.

    size:     (height, width)
    rates:    frames per second as the file states them; see `VideoReader`
    times:    float64 [T], seconds, in the order of display: the frames that are complete
    checksum: of the file's bytes
    problem:  "", or that the file is cut off or empty
    """

    size: tuple[int, int]
    rates: tuple[float, ...]
    times: np.ndarray
    checksum: int
    problem: str = ""

    def require(self, start: float, count: int, fps: float) -> None:
        """Check that `count` frames follow each other at `fps` from the time `start` on.

        Raises ValueError that says what the video has instead.
        """
        require_rate(self.rates, fps)
        begin = int(np.searchsorted(self.times, start - FRAME_TOLERANCE / fps))
        found = self.times[begin : begin + count]
        if len(found) < count:
            raise ValueError(f"the video holds only {len(found)} of the {count} frames")
        distances = np.abs(found - start - np.arange(count) / fps)
        if distances.max(initial=0) > FRAME_TOLERANCE / fps:
            step = int(np.argmax(distances > FRAME_TOLERANCE / fps))
            raise ValueError(
                f"the video has no frame for step {step}: frames do not follow each other at "
                f"{fps:g} per second"
            )


def require_rate(rates: tuple[float, ...], fps: float) -> None:
    """Raise ValueError if a video states another number of frames per second than `fps`."""
    if rates and all(abs(rate / fps - 1) > _RATE_TOLERANCE for rate in rates):
        raise ValueError(f"the video has {rates[0]:g} frames per second, the data set {fps:g}")


def scan_video(path: Path) -> VideoScan:
    """Read a video once without decoding it. Raises ValueError if it is no readable video."""
    video = VideoReader(path)
    with contextlib.closing(video):
        times = video.times
    problem = "" if len(times) else "the video has no frames"
    if video.num_missing:
        problem = f"the video is cut off: {video.num_missing} frames are missing"
    return VideoScan(video.size, video.rates, times, file_checksum(path), problem)


def file_checksum(path: Path) -> int:
    """Return the CRC-32C of a file's bytes."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BYTES_PER_READ):
            checksum = google_crc32c.extend(checksum, block)
    return checksum


class VideoReader:
    """An open video: its frames by their time in seconds.

    Decoding continues from where it is if the next wanted frame lies ahead. Otherwise, and if the
    way is long, it starts anew at the keyframe before the wanted frame.

    size:  (height, width)
    rates: frames per second, as the file states them: on average, and usually; empty if it states
           none. The average of a short video is wrong if its last frame has no duration.
    num_missing: frames that the file states but does not hold; known once `times` was read
    """

    def __init__(self, path: Path, threads: int = 0):
        """Open a video.

        threads: of the decoder; 0 = as many as there are cores

        Raises ValueError if it is no readable video.
        """
        av = import_extra("av", "video")
        if not path.is_file():
            raise ValueError("no such file" if not path.exists() else "is no regular file")
        self._error: type[Exception] = av.FFmpegError
        with self._readable("is no readable video"):
            self._container: InputContainer = av.open(str(path))
        try:
            self._open_stream(threads)
        except ValueError:
            self._container.close()
            raise
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._reach = _SHORT_WAY_S
        self._start()

    def _open_stream(self, threads: int) -> None:
        if not self._container.streams.video:
            raise ValueError("has no video in it")
        self._stream = self._container.streams.video[0]
        assert self._stream.time_base is not None
        self._tick_s = float(self._stream.time_base)
        self._stream.codec_context.thread_count = threads
        self._stream.thread_type = "AUTO" if threads != 1 else "NONE"
        stated = (self._stream.average_rate, self._stream.base_rate)
        self.rates = tuple(float(rate) for rate in stated if rate)
        self.num_missing = 0
        self.size = (self._stream.height, self._stream.width)
        height, width = self.size
        if not 0 < height * width <= MAX_PIXELS:
            raise ValueError(f"is a video of {height} x {width} pixels")
        # The time stamps in AVI are not those of the frames, so these are counted.
        self._is_counted = "avi" in self._container.format.name
        if self._is_counted and not self.rates:
            raise ValueError("does not state its frames per second")

    @contextlib.contextmanager
    def _readable(self, problem: str) -> Iterator[None]:
        """Turn an error of FFmpeg into a ValueError."""
        try:
            yield
        except (self._error, EOFError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{problem} ({reason})") from error

    @cached_property
    def times(self) -> np.ndarray:
        """The times of all complete frames, sorted, float64 [T]. Nothing is decoded for them.

        Raises ValueError if the file does not state them.
        """
        packets = []
        # A video that is cut off ends with an error or a corrupt packet. The frames before count.
        with contextlib.suppress(self._error):
            if self._time > -np.inf:
                self._container.seek(0, stream=self._stream)
            for packet in self._container.demux(self._stream):
                if packet.size and not packet.is_corrupt:
                    packets.append((packet.pts, packet.is_discard))
        self._end()
        self.num_missing = max(0, self._stream.frames - len(packets))
        ticks = [pts for pts, is_discarded in packets if not is_discarded]
        if self._is_counted:
            return np.arange(len(ticks)) / self.rates[0]
        if None in ticks:
            raise ValueError("has frames without time stamps")
        return np.sort(np.array(ticks, np.int64)) * self._tick_s

    def frame(self, time: float, tolerance: float) -> np.ndarray:
        """Return the frame that is displayed at `time`, seconds, as uint8 [H, W, 3], RGB.

        tolerance: how far from `time` the frame may be, seconds

        Raises ValueError if there is no such frame, or if it is damaged.
        """
        with self._readable("cannot be decoded"):
            if not self._time - tolerance <= time <= max(self._time, 0.0) + self._reach:
                self._seek(time, tolerance)
            while self._time < time - tolerance:
                self._advance()
        if self._time > time + tolerance:
            found = f"; the next is at {self._time:.3f} s" if self._frame else ""
            raise ValueError(f"the video has no frame at {time:.3f} s{found}")
        if self._frame.is_corrupt:
            raise ValueError(f"the frame at {time:.3f} s is damaged")
        return self._pixels()

    def _pixels(self) -> np.ndarray:
        # `frame.to_ndarray(format="rgb24")` would make a new converter for each frame, which takes
        # longer than decoding.
        pixels = self._reformatter.reformat(self._frame, format="rgb24").to_ndarray()
        if pixels.shape[:2] != self.size:
            raise ValueError(f"a frame has {pixels.shape[:2]} pixels, the video {self.size}")
        return pixels

    # --- the position. `_frame` was decoded last, and `_time` is its time.

    def _start(self) -> None:
        """Be before the first frame that will be decoded."""
        self._frame: Any = None
        self._time, self._count = -np.inf, 0
        self._frames = self._decode()

    def _end(self) -> None:
        """Be where only a seek leads on."""
        self._frame, self._time = None, np.inf

    def _decode(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            if not packet.is_corrupt:
                yield from packet.decode()

    def _advance(self) -> None:
        """Decode the next frame. At the end, or if that fails, be at the end."""
        frames = self._frames
        self._end()
        frame = next(frames, None)
        if frame is None:
            return
        if self._is_counted:
            self._time, self._count = self._count / self.rates[0], self._count + 1
        elif frame.pts is None:
            raise ValueError("has frames without time stamps")
        else:
            self._time = frame.pts * self._tick_s
        self._frame = frame

    def _seek(self, time: float, tolerance: float) -> None:
        """Decode the keyframe at or before `time`."""
        back = 0.0  # some containers seek by the order of decoding, and end behind the wanted frame
        while True:
            begin = 0.0 if self._is_counted else max(0.0, time - back)
            ticks = round(begin / self._tick_s)
            self._container.seek(ticks, stream=self._stream)
            self._start()
            self._advance()
            if self._time <= time + tolerance:
                # Keyframes lie at least so far apart, so a shorter way is decoded without a seek.
                self._reach = max(self._reach, time - self._time)
                return
            if begin == 0.0:
                return
            back = max(1.0, 2 * back)

    def close(self) -> None:
        """Close the file."""
        self._end()
        self._frames = iter(())
        self._container.close()


class VideoReaders:
    """Open videos by their path. The one that was not used for longest is closed for a new one.

    threads: of each decoder; 0 = as many as there are cores
    """

    def __init__(self, threads: int = 0):
        self._threads = threads
        self._open: OrderedDict[Path, VideoReader] = OrderedDict()

    def open(self, path: Path) -> VideoReader:
        """Return the reader of a video. Raises ValueError if it is no readable video."""
        if path not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = VideoReader(path, self._threads)
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        """Close all videos."""
        while self._open:
            self._open.popitem()[1].close()
