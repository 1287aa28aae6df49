"""Sampling: (seed, sample number) -> episode, camera, five steps, windows, crop boxes and colours.

Pure NumPy and pure functions: sample i is the same whoever draws it, whenever, with whatever it is
batched together. So the stream does not depend on the number of workers, processes or restarts, and
resuming a run is one integer. The random numbers come from a counter-based generator (Philox):
sample i owns a range of its own.

    START  ~ U{1 .. floor(alpha*T)+1}     END ~ U{floor((1-alpha)*T)-1 .. T-1}
    MIDDLE ~ U{2 .. T-1}   EARLY ~ U{1 .. MIDDLE-1}   LATE ~ U{MIDDLE .. T-1}

Upstream's rule, kept: it never draws frame 0 and may draw LATE = MIDDLE. Where only some steps of
an episode may be drawn (`KeptSteps`), the rule runs on the timeline of these, T of them; windows
around them are of the whole recording.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mcr.data.batch import NUM_FRAMES
from mcr.errors import UserError, require_choice

TRAIN, VALIDATION = 0, 1  # independent random streams

_CROP_TRIES = 10  # torchvision's RandomResizedCrop
_DRAWS_PER_CROP = 2 * _CROP_TRIES + 2
_STEP_DRAWS = 7  # episode, camera, START, END, MIDDLE, EARLY, LATE
_COLOR_DRAWS = 5  # of a frame: brightness, contrast, red, green, blue
_PHILOX_BLOCK = 4  # numbers per step of the counter
_PLACES, _COLORS = 0, 1  # independent random streams: what is drawn
_MID_GREY = 0.45  # of pixels in 0..1: what contrast leaves as it is


@dataclass
class SamplingConfig:
    """How clips are drawn.

    alpha:         START and END lie in the first and last `alpha` of an episode
    window:        states per window of the dynamics objective, L (paper: 3)
    crop:          "random" (RandomResizedCrop) or "center" (the square that an encoder sees)
    crop_per:      "frame": each of the five frames has its own box and colours; "clip": all share
                   them.
                   Upstream: meant clips to share it, but compares a string with a list, so every
                   released weight was trained with a box per frame.
    crop_scale:    area of a random crop, as a share of the frame
    crop_ratio:    width / height of a random crop
    color_jitter:  brightness and contrast are multiplied by up to exp(this) or its inverse, each of
                   red, green and blue by up to the square root of it; 0 = none (paper, upstream)
    """

    alpha: float = 0.2
    window: int = 3
    crop: str = "random"
    crop_per: str = "frame"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        require_choice("data.sampling.crop", self.crop, ("random", "center"))
        require_choice("data.sampling.crop_per", self.crop_per, ("frame", "clip"))
        if not 0 < self.alpha < 1:
            raise UserError(f"data.sampling.alpha={self.alpha} must lie between 0 and 1")
        if self.window < 1:
            raise UserError(f"data.sampling.window={self.window} must be at least 1")
        if not 0 <= self.color_jitter < 3:
            raise UserError(f"data.sampling.color_jitter={self.color_jitter} must lie in 0 .. 3")


@dataclass(frozen=True)
class KeptSteps:
    """Which steps of n episodes may be drawn: ranges, so that long episodes cost no more memory.

    begins:  int32 [K]  the first step of each range in its episode; ranges in order of time
    offsets: int64 [K]  kept steps before each range, over all episodes that have ranges
    bases:   int64 [n]  kept steps before each episode, the same count
    lengths: int64 [n]  kept steps of each episode
    """

    begins: np.ndarray
    offsets: np.ndarray
    bases: np.ndarray
    lengths: np.ndarray

    def of(self, episodes: np.ndarray) -> KeptSteps:
        """The same of some episodes only; the ranges are shared."""
        return replace(self, bases=self.bases[episodes], lengths=self.lengths[episodes])

    def real_steps(self, episodes: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Steps of the recording, int64 [m, F], of places 0 .. lengths - 1 on the kept timeline."""
        places = self.bases[episodes][:, None] + places
        ranges = np.searchsorted(self.offsets, places, side="right") - 1
        return self.begins[ranges] + (places - self.offsets[ranges])


@dataclass(frozen=True)
class Draw:
    """n clips, before any pixel is read.

    episodes: int64 [n]         positions in `lengths`
    cameras:    int64 [n]         0 .. num_cameras - 1
    steps:    int64 [n, F]      START, EARLY, MIDDLE, LATE, END
    windows:  int64 [n, 2, L]   steps around EARLY and LATE
    crops:    float32 [n, F, 4] top, left, height, width in pixels
    colors:   float32 [n, F, 2, 3]  gain and offset of red, green and blue in 0..1
    """

    episodes: np.ndarray
    cameras: np.ndarray
    steps: np.ndarray
    windows: np.ndarray
    crops: np.ndarray
    colors: np.ndarray


def draw_samples(
    seed: int,
    first: int,
    count: int,
    lengths: np.ndarray,
    num_cameras: int,
    frame_size: tuple[int, int],
    config: SamplingConfig,
    stream: int = TRAIN,
    attempt: int = 0,
    kept: KeptSteps | None = None,
) -> Draw:
    """Samples first .. first + count - 1 of the run `seed`.

    lengths:    steps of each eligible episode, int64 [n], each at least 3
    frame_size: (height, width), for the crop boxes
    attempt:    0; a sample whose frames cannot be read is drawn anew as attempt 1, 2, ...
    kept:       which steps of these episodes may be drawn, at least 3 of each; None = all
    """
    num_draws = _STEP_DRAWS + NUM_FRAMES * _DRAWS_PER_CROP
    u = _uniform(seed, first, count, num_draws, attempt, stream, _PLACES)
    color_draws = _uniform(seed, first, count, NUM_FRAMES * _COLOR_DRAWS, attempt, stream, _COLORS)
    episodes = _integer(u[:, 0], 0, len(lengths) - 1)
    drawable = kept.lengths if kept else lengths
    steps = _draw_steps(u[:, 2:_STEP_DRAWS], drawable[episodes], config.alpha)
    if kept:
        steps = kept.real_steps(episodes, steps)
    return Draw(
        episodes=episodes,
        cameras=_integer(u[:, 1], 0, num_cameras - 1),
        steps=steps,
        windows=_windows(steps[:, [1, 3]], lengths[episodes], config.window),
        crops=_crops(_per_frame(u[:, _STEP_DRAWS:], config), frame_size, config),
        colors=_colors(_per_frame(color_draws, config), config.color_jitter),
    )


def _uniform(
    seed: int, first: int, count: int, num_draws: int, attempt: int, stream: int, what: int
) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [count, num_draws]."""
    blocks = -(-num_draws // _PHILOX_BLOCK)
    generator = np.random.Philox(key=seed, counter=[first * blocks, attempt, stream, what])
    raw = generator.random_raw(count * blocks * _PHILOX_BLOCK).reshape(count, -1)
    return (raw[:, :num_draws] >> np.uint64(11)) * 2.0**-53


def _integer(u: np.ndarray, low: np.ndarray | int, high: np.ndarray | int) -> np.ndarray:
    """Uniform integers in low .. high, both included."""
    return low + (u * (np.asarray(high) - low + 1)).astype(np.int64)


def _draw_steps(u: np.ndarray, lengths: np.ndarray, alpha: float) -> np.ndarray:
    last = lengths - 1
    start = _integer(u[:, 0], 1, np.minimum((alpha * lengths).astype(np.int64) + 1, last))
    end = _integer(u[:, 1], np.maximum(((1 - alpha) * lengths).astype(np.int64) - 1, 0), last)
    middle = _integer(u[:, 2], 2, last)
    early = _integer(u[:, 3], 1, middle - 1)
    late = _integer(u[:, 4], middle, last)
    return np.stack([start, early, middle, late, end], axis=1)


def _windows(centres: np.ndarray, lengths: np.ndarray, window: int) -> np.ndarray:
    """Steps around each centre; at the ends the window is moved in, then its last step repeated."""
    first = np.maximum(1, centres - window // 2)
    steps = first[..., None] + np.arange(window)
    return np.minimum(steps, lengths[:, None, None] - 1)


def _per_frame(u: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """[n, F * k] -> [n, F, k], the first frame's for all where a clip shares its augmentation."""
    u = u.reshape(len(u), NUM_FRAMES, -1)
    return np.broadcast_to(u[:, :1], u.shape) if config.crop_per == "clip" else u


def _colors(u: np.ndarray, jitter: float) -> np.ndarray:
    """Gain and offset of each channel, float32 [n, F, 2, 3], of u [n, F, 5]."""
    factors = np.exp(jitter * (2 * u - 1) * [1, 1, 0.5, 0.5, 0.5])
    contrast = factors[..., 1:2]
    gain = factors[..., :1] * factors[..., 2:]
    return np.stack([gain * contrast, gain * (1 - contrast) * _MID_GREY], -2).astype(np.float32)


def _crops(u: np.ndarray, frame_size: tuple[int, int], config: SamplingConfig) -> np.ndarray:
    if config.crop == "center":
        return np.broadcast_to(center_crop(frame_size), (*u.shape[:2], 4)).astype(np.float32)
    return _random_crops(u, frame_size, config.crop_scale, config.crop_ratio)


def _random_crops(
    u: np.ndarray,
    frame_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Boxes distributed as torchvision's RandomResizedCrop draws them, float32 [..., 4].

    The first of ten proposals (area, aspect) that fits the frame, at a uniform place; where none
    fits, the largest central crop of an allowed aspect.
    """
    frame_height, frame_width = frame_size
    area = frame_height * frame_width * (scale[0] + u[..., :10] * (scale[1] - scale[0]))
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(log_low + u[..., 10:20] * (log_high - log_low))
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= frame_width) & (heights > 0) & (heights <= frame_height)
    chosen = fits.argmax(-1)[..., None]
    width = np.take_along_axis(widths, chosen, -1)[..., 0]
    height = np.take_along_axis(heights, chosen, -1)[..., 0]
    top = np.floor(u[..., 20] * (frame_height - height + 1))
    left = np.floor(u[..., 21] * (frame_width - width + 1))
    boxes = np.stack([top, left, height, width], -1)
    fallback = _largest_central_crop(frame_size, ratio)
    return np.where(fits.any(-1)[..., None], boxes, fallback).astype(np.float32)


def _largest_central_crop(
    frame_size: tuple[int, int], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    frame_height, frame_width = frame_size
    height = min(frame_height, round(frame_width / ratio[0]))
    width = min(frame_width, round(frame_height * ratio[1]))
    return (frame_height - height) // 2, (frame_width - width) // 2, height, width


def center_crop(frame_size: tuple[int, int], fraction: float = 224 / 256) -> np.ndarray:
    """The box that "resize the shorter side to 256, cut the central 224" leaves, float32 [4]."""
    frame_height, frame_width = frame_size
    side = round(min(frame_size) * fraction)
    return np.array([(frame_height - side) // 2, (frame_width - side) // 2, side, side], np.float32)
