"""Sampling: (seed, sample number) -> episode, camera, five steps, windows, crop boxes and colours.

Everything here is a pure function in NumPy. Sample i does not depend on the process that draws it,
on the time, or on the other samples of its batch. So the stream is the same for any number of
workers, processes and restarts, and one integer is enough to resume a run. The random numbers come
from a counter-based generator (Philox), in which sample i owns a range.

    START  ~ U{1 .. floor(alpha*T)+1}     END ~ U{floor((1-alpha)*T)-1 .. T-1}
    MIDDLE ~ U{2 .. T-1}   EARLY ~ U{1 .. MIDDLE-1}   LATE ~ U{MIDDLE .. T-1}

This is upstream's rule: it never draws frame 0 and may draw LATE = MIDDLE, unless
`late_after_middle` is set. If only some steps of an episode may be drawn (`KeptSteps`), the rule
counts only these, so T is their number. Windows around them take steps of the whole episode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from mcr.data.batch import NUM_FRAMES
from mcr.runs.ranges import check_fields, choice, each, number, whole

TRAIN, VALIDATION = 0, 1  # independent random streams

_CROP_TRIES = 10  # torchvision's RandomResizedCrop
_DRAWS_PER_CROP = 2 * _CROP_TRIES + 2
_STEP_DRAWS = 7  # episode, camera, START, END, MIDDLE, EARLY, LATE
_COLOR_DRAWS = 5  # brightness, contrast, red, green, blue of a frame
_PHILOX_BLOCK = 4  # random numbers per step of the counter
_PLACES, _COLORS = 0, 1  # independent random streams, too
_MID_GREY = 0.45  # the value that a change of contrast keeps, for pixels in 0..1
_SCALES = each(number(above=0, most=1), count=2, ordered=True)
_RATIOS = each(number(least=0.01, most=100), count=2, ordered=True)


@dataclass
class SamplingConfig:
    """How clips are drawn.

    alpha:         START lies in the first and END in the last `alpha` of an episode
    window:        number of states in a window of the dynamics objective, L (paper: 3)
    action_chunk:  number of actions from a frame on that action prediction predicts, K; upstream's
                   is 1
    crop:          "random" (RandomResizedCrop) or "center" (the square that an encoder sees)
    crop_per:      "frame": each of the five frames has its own box and colours; "clip": they share
                   one box and one set of colours.
                   Upstream: clips were meant to share a box, but the code compares a string with a
                   list, so all released weights were trained with a box per frame.
    crop_scale:    area of a random crop as a share of the frame, (least, most)
    crop_ratio:    width / height of a random crop, (least, most)
    color_jitter:  J. Brightness and contrast are multiplied by a factor between exp(-J) and exp(J);
                   red, green and blue each by one between exp(-J/2) and exp(J/2). 0 = no jitter
                   (paper, upstream)
    late_after_middle: draw LATE > MIDDLE, so that time contrast always has an answer, from episodes
                   of at least 4 steps: MIDDLE ~ U{2 .. T-2}, LATE ~ U{MIDDLE+1 .. T-1}. Without it,
                   the two are the same frame in 2% of the clips from episodes of 269 steps, and in
                   11% of those from 40 steps
    """

    alpha: Annotated[float, number(above=0, below=1)] = 0.2
    window: Annotated[int, whole(1)] = 3
    action_chunk: Annotated[int, whole(1)] = 1
    crop: Annotated[str, choice(("random", "center"))] = "random"
    crop_per: Annotated[str, choice(("frame", "clip"))] = "frame"
    crop_scale: Annotated[tuple[float, float], _SCALES] = (0.5, 1.0)
    crop_ratio: Annotated[tuple[float, float], _RATIOS] = (3 / 4, 4 / 3)
    color_jitter: Annotated[float, number(least=0, below=3)] = 0.0
    late_after_middle: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "data.sampling.")


@dataclass(frozen=True)
class KeptSteps:
    """Which steps of n episodes may be drawn, as ranges to save memory.

    begins:  int32 [K]  the first step of each range in its episode; ranges in order of time
    offsets: int64 [K]  number of kept steps before each range, in all episodes together
    bases:   int64 [n]  number of kept steps before each episode, in all episodes together
    lengths: int64 [n]  number of kept steps of each episode
    """

    begins: np.ndarray
    offsets: np.ndarray
    bases: np.ndarray
    lengths: np.ndarray

    def of(self, episodes: np.ndarray) -> KeptSteps:
        """Return the kept steps of some episodes. The ranges are shared, not copied."""
        return replace(self, bases=self.bases[episodes], lengths=self.lengths[episodes])

    def real_steps(self, episodes: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Turn positions among the kept steps (0 .. lengths - 1) into steps, int64 [m, F]."""
        places = self.bases[episodes][:, None] + places
        ranges = np.searchsorted(self.offsets, places, side="right") - 1
        return self.begins[ranges] + (places - self.offsets[ranges])


@dataclass(frozen=True)
class Draw:
    """n clips. Nothing of them has been read yet.

    episodes: int64 [n]         positions in `lengths`
    cameras:  int64 [n]         0 .. C - 1
    steps:    int64 [n, F]      START, EARLY, MIDDLE, LATE, END
    windows:  int64 [n, 2, L]   steps around EARLY and LATE
    chunks:   int64 [n, F, K]   the steps from each of the five on
    crops:    float32 [n, F, 4] top, left, height, width in pixels
    colors:   float32 [n, F, 2, 3]  gain and offset of red, green and blue, for pixels in 0..1
    """

    episodes: np.ndarray
    cameras: np.ndarray
    steps: np.ndarray
    windows: np.ndarray
    chunks: np.ndarray
    crops: np.ndarray
    colors: np.ndarray


def draw_samples(
    seed: int,
    first: int,
    count: int,
    lengths: np.ndarray,
    sizes: np.ndarray,
    config: SamplingConfig,
    stream: int = TRAIN,
    attempt: int = 0,
    kept: KeptSteps | None = None,
) -> Draw:
    """Draw the samples first .. first + count - 1 of the run `seed`.

    lengths: number of steps of each episode to draw from, int64 [n], each at least 3
    sizes:   height and width of the frames of each episode and camera, int [n, C, 2]; 0 = the
             episode lacks the camera. Each episode must have one of them.
    stream:  TRAIN or VALIDATION
    attempt: 0; a sample whose frames cannot be read is drawn again as attempt 1, 2, ...
    kept:    steps of these episodes that may be drawn, at least 3 of each; None = all
    """
    num_draws = _STEP_DRAWS + NUM_FRAMES * _DRAWS_PER_CROP
    u = _uniform(seed, first, count, num_draws, attempt, stream, _PLACES)
    color_draws = _uniform(seed, first, count, NUM_FRAMES * _COLOR_DRAWS, attempt, stream, _COLORS)
    episodes = _integer(u[:, 0], 0, len(lengths) - 1)
    drawable = kept.lengths if kept else lengths
    steps = _draw_steps(u[:, 2:_STEP_DRAWS], drawable[episodes], config)
    if kept:
        steps = kept.real_steps(episodes, steps)
    cameras = _present_cameras(u[:, 1], sizes[episodes, :, 0] > 0)
    return Draw(
        episodes=episodes,
        cameras=cameras,
        steps=steps,
        windows=_windows(steps[:, [1, 3]], lengths[episodes], config.window),
        chunks=_chunks(steps, lengths[episodes], config.action_chunk),
        crops=_crops(_per_frame(u[:, _STEP_DRAWS:], config), sizes[episodes, cameras], config),
        colors=_colors(_per_frame(color_draws, config), config.color_jitter),
    )


def _uniform(
    seed: int, first: int, count: int, num_draws: int, attempt: int, stream: int, what: int
) -> np.ndarray:
    """Return uniform numbers in [0, 1), float64 [count, num_draws]."""
    blocks = -(-num_draws // _PHILOX_BLOCK)
    generator = np.random.Philox(key=seed, counter=[first * blocks, attempt, stream, what])
    raw = generator.random_raw(count * blocks * _PHILOX_BLOCK).reshape(count, -1)
    return (raw[:, :num_draws] >> np.uint64(11)) * 2.0**-53


def _integer(u: np.ndarray, low: np.ndarray | int, high: np.ndarray | int) -> np.ndarray:
    """Map uniform numbers in [0, 1) to uniform integers in low .. high, both included."""
    return low + (u * (np.asarray(high) - low + 1)).astype(np.int64)


def _present_cameras(u: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Draw one of the cameras that each episode has, int64 [n], from `present` bool [n, C]."""
    number = _integer(u, 0, present.sum(axis=1) - 1)
    return (np.cumsum(present, axis=1) == (number + 1)[:, None]).argmax(axis=1)


def _draw_steps(u: np.ndarray, lengths: np.ndarray, config: SamplingConfig) -> np.ndarray:
    last, alpha, gap = lengths - 1, config.alpha, int(config.late_after_middle)
    start = _integer(u[:, 0], 1, np.minimum((alpha * lengths).astype(np.int64) + 1, last))
    end = _integer(u[:, 1], np.maximum(((1 - alpha) * lengths).astype(np.int64) - 1, 0), last)
    middle = _integer(u[:, 2], 2, np.maximum(last - gap, 2))
    early = _integer(u[:, 3], 1, middle - 1)
    late = _integer(u[:, 4], np.minimum(middle + gap, last), last)
    return np.stack([start, early, middle, late, end], axis=1)


def _windows(centres: np.ndarray, lengths: np.ndarray, window: int) -> np.ndarray:
    """Return the steps around each centre.

    A window that would begin before step 1 begins there. One that would end after the last step
    repeats the last step.
    """
    first = np.maximum(1, centres - window // 2)
    steps = first[..., None] + np.arange(window)
    return np.minimum(steps, lengths[:, None, None] - 1)


def _chunks(steps: np.ndarray, lengths: np.ndarray, chunk: int) -> np.ndarray:
    """Return the `chunk` steps from each of `steps` on. After the last step it is repeated."""
    return np.minimum(steps[..., None] + np.arange(chunk), lengths[:, None, None] - 1)


def _per_frame(u: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """[n, F * k] -> [n, F, k]. All frames get the first one's numbers if clips share them."""
    u = u.reshape(len(u), NUM_FRAMES, -1)
    return np.broadcast_to(u[:, :1], u.shape) if config.crop_per == "clip" else u


def _colors(u: np.ndarray, jitter: float) -> np.ndarray:
    """Return gain and offset of each channel, float32 [n, F, 2, 3], from u [n, F, 5]."""
    factors = np.exp(jitter * (2 * u - 1) * [1, 1, 0.5, 0.5, 0.5])
    contrast = factors[..., 1:2]
    gain = factors[..., :1] * factors[..., 2:]
    return np.stack([gain * contrast, gain * (1 - contrast) * _MID_GREY], -2).astype(np.float32)


def _crops(u: np.ndarray, sizes: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Return the boxes of n clips, float32 [n, F, 4], from u [n, F, k] and sizes [n, 2]."""
    if config.crop == "center":
        boxes = np.broadcast_to(center_crop(sizes)[:, None], (*u.shape[:2], 4))
        return boxes.astype(np.float32)
    return _random_crops(u, sizes[:, None], config.crop_scale, config.crop_ratio)


def _random_crops(
    u: np.ndarray,
    sizes: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Return boxes of the distribution of torchvision's RandomResizedCrop, float32 [..., 4].

    A box is the first of ten proposals (area, aspect) that fits the frame, at a uniform place. If
    none fits, it is the largest central crop of an allowed aspect.

    sizes: (height, width) of each frame, int [..., 2]
    """
    frame_heights, frame_widths = sizes[..., 0, None], sizes[..., 1, None]
    area = frame_heights * frame_widths * (scale[0] + u[..., :10] * (scale[1] - scale[0]))
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(log_low + u[..., 10:20] * (log_high - log_low))
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= frame_widths) & (heights > 0) & (heights <= frame_heights)
    chosen = fits.argmax(-1)[..., None]
    width = np.take_along_axis(widths, chosen, -1)[..., 0]
    height = np.take_along_axis(heights, chosen, -1)[..., 0]
    top = np.floor(u[..., 20] * (sizes[..., 0] - height + 1))
    left = np.floor(u[..., 21] * (sizes[..., 1] - width + 1))
    boxes = np.stack([top, left, height, width], -1)
    fallback = _largest_central_crops(sizes, ratio)
    return np.where(fits.any(-1)[..., None], boxes, fallback).astype(np.float32)


def _largest_central_crops(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    frame_heights, frame_widths = sizes[..., 0], sizes[..., 1]
    heights = np.minimum(frame_heights, np.rint(frame_widths / ratio[0]))
    widths = np.minimum(frame_widths, np.rint(frame_heights * ratio[1]))
    tops, lefts = (frame_heights - heights) // 2, (frame_widths - widths) // 2
    return np.stack([tops, lefts, heights, widths], -1)


def center_crop(sizes: np.ndarray | tuple[int, int], fraction: float = 224 / 256) -> np.ndarray:
    """Return the box that "resize the shorter side to 256, crop to 224" keeps, float32 [..., 4].

    sizes: (height, width) of each frame, [..., 2]
    """
    sizes = np.asarray(sizes)
    side = np.rint(sizes.min(-1) * fraction).astype(np.int64)
    top, left = (sizes[..., 0] - side) // 2, (sizes[..., 1] - side) // 2
    return np.stack([top, left, side, side], -1).astype(np.float32)
