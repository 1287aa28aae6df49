"""Pictures of a run: what enters the network, where it looks, and how it orders an episode.

The training loop draws two figures every `pictures_every` steps. They always show the same clips
and episodes (held-out ones if there are any), so that different steps can be compared. Drawing does
not affect training: it uses no random number and changes no gradient, mode or batch-norm statistic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from mcr.data.batch import NUM_FRAMES, UNNAMED
from mcr.data.frames import FrameReader
from mcr.data.index import Index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.sampling import VALIDATION, center_crop
from mcr.data.selection import Episodes
from mcr.errors import UserError
from mcr.models.grad_cam import feature_map, grad_cam
from mcr.training.pretrainer import Pretrainer

NUM_CLIPS = 4
NUM_EPISODES = 4
STEPS_PER_EPISODE = 32

_FRAME_NAMES = ("start", "early", "middle", "late", "end")
_GAP = 3  # white pixels between pictures


class Painter:
    """Draws the figures of a data set and saves them in `folder` as step_<step>_<name>.png.

    The names of the figures begin with that of the data set, if it has one.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        episodes: Episodes,
        config: DataConfig,
        seed: int,
        frames: FrameReader | None = None,
        name: str = UNNAMED,
    ):
        """Read everything that the figures show.

        episodes: the clips are drawn from these, and some of them are shown whole, as the first
                  camera saw them
        frames:   reads the frames; None = from the data set itself
        name:     of the data set
        Raises UserError for unreadable frames, unless data.on_error="skip".
        """
        self._folder, self._name = folder, name
        frames = frames or FrameReader(index)
        clips = ClipDataset(index, episodes, config, seed, VALIDATION, frames)
        self._batch = next(iter(ClipLoader(clips, replace(config, workers=0), NUM_CLIPS)))
        chosen = np.linspace(0, len(episodes) - 1, min(NUM_EPISODES, len(episodes))).astype(int)
        rows = episodes.rows[chosen].tolist()
        with contextlib.closing(frames):
            self._episodes = [_read_episode(index, row, config, frames) for row in rows]

    def draw(self, model: Pretrainer, step: int) -> dict[str, np.ndarray]:
        """Draw and save the figures. Returns {name: uint8 [H, W, 3]}."""
        with in_eval_mode(model):
            drawn = {"clips": self._draw_clips(model), "episodes": self._draw_episodes(model)}
        figures = {f"{self._name}_{kind}".lstrip("_"): drawn[kind] for kind in drawn}
        self._folder.mkdir(parents=True, exist_ok=True)
        pixels = {}
        for name, figure in figures.items():
            figure.suptitle(f"step {step:,}: {figure.get_suptitle()}", fontsize=11)
            pixels[name] = _rasterise(figure)
            Image.fromarray(pixels[name]).save(self._folder / f"step_{step:08d}_{name}.png")
        return pixels

    def _draw_clips(self, model: Pretrainer) -> Figure:
        batch = self._batch.to(_device(model))
        inputs = model.network_input(batch.frames, batch.crops, batch.colors)
        return compose_clips(
            _denormalise(model, inputs),
            grad_cam(model.encoder, inputs).cpu().numpy(),
            feature_map(model.encoder, inputs)[0].detach().float().cpu().numpy(),
            [f"sample {number}" for number in self._batch.samples.tolist()],
        )

    def _draw_episodes(self, model: Pretrainer) -> Figure:
        device, embeddings = _device(model), []
        for _, frames in self._episodes:
            box = torch.from_numpy(center_crop((frames.shape[-2], frames.shape[-1]))).to(device)
            inputs = model.network_input(frames[:, None].to(device), box.expand(len(frames), 1, 4))
            embeddings.append(feature_map(model.encoder, inputs)[1].detach().float().cpu().numpy())
        return compose_episodes(embeddings, [times for times, _ in self._episodes])


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode inside the block, and back in its own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _read_episode(
    index: Index, row: int, config: DataConfig, reader: FrameReader
) -> tuple[np.ndarray, Tensor]:
    """Read evenly spaced frames of the first camera that the episode has.

    Returns times, float [n] in [0, 1], and frames, uint8 [n, 3, H, W].
    """
    length = int(index.lengths[row])
    cameras = [index.cameras.index(camera) for camera in config.cameras or index.default_cameras]
    camera = next((c for c in cameras if reader.sizes[row, c, 0] > 0), cameras[0])
    times, frames = [], []
    for step in np.linspace(0, length - 1, min(STEPS_PER_EPISODE, length)).astype(int).tolist():
        try:
            frames.append(reader.read(row, camera, step))
            times.append(step / (length - 1))
        except UserError:
            if config.on_error == "raise":
                raise
    shown = np.stack(frames) if frames else np.zeros((0, *reader.sizes[row, camera], 3), np.uint8)
    return np.array(times), rearrange(torch.from_numpy(shown), "n h w c -> n c h w")


def _device(model: Pretrainer) -> torch.device:
    return next(model.parameters()).device


def _denormalise(model: Pretrainer, inputs: Tensor) -> np.ndarray:
    """Turn network inputs [N, 3, S, S] back into pictures, uint8 [N, S, S, 3]."""
    mean, std = (torch.tensor(v) for v in (model.preprocessing.mean, model.preprocessing.std))
    colours = rearrange(inputs.float().cpu(), "n c h w -> n h w c") * std + mean
    return (255 * colours.clamp(0, 1)).round().byte().numpy()


# --------------------------------------------------------------------------- figures


def compose_clips(
    inputs: np.ndarray, saliency: np.ndarray, features: np.ndarray, names: list[str]
) -> Figure:
    """Compose a figure of network inputs, their Grad-CAM, and the last feature map, side by side.

    inputs:   uint8 [B * F, S, S, 3]
    saliency: Grad-CAM, float [B * F, S, S] in [0, 1]
    features: float [B * F, C, h, w]
    names:    of the B clips
    """
    heat = (255 * matplotlib.colormaps["turbo"](saliency)[..., :3]).astype(np.uint8)
    overlays = (0.5 * inputs + 0.5 * heat).astype(np.uint8)
    colours = rearrange(torch.from_numpy(colour_features(features)), "n h w c -> n c h w")
    enlarged = F.interpolate(colours, inputs.shape[1:3], mode="nearest").movedim(1, -1).numpy()
    panels = {
        "what enters the network": inputs,
        "where it looks (Grad-CAM of the largest output)": overlays,
        "last feature map (its first 3 principal components)": enlarged,
    }
    figure = Figure(figsize=(15, 0.98 * len(names) + 0.7), layout="constrained")
    for number, (axes, (title, images)) in enumerate(
        zip(figure.subplots(1, 3), panels.items(), strict=True)
    ):
        _show_tiles(axes, images, names if number == 0 else None)
        axes.set_title(title, fontsize=10)
    figure.suptitle("clips of five frames")
    return figure


def _show_tiles(axes: Axes, images: np.ndarray, row_names: list[str] | None) -> None:
    """Show images [B * F, s, s, 3] as B rows of F."""
    size = images.shape[1]
    images = np.pad(images, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    axes.imshow(rearrange(images, "(b f) h w c -> (b h) (f w) c", f=NUM_FRAMES))
    pitch = size + _GAP
    axes.set_xticks([pitch * n + size / 2 for n in range(NUM_FRAMES)], _FRAME_NAMES, fontsize=8)
    if row_names:
        places = [pitch * n + size / 2 for n in range(len(row_names))]
        axes.set_yticks(places, row_names, fontsize=8)
    else:
        axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def colour_features(features: np.ndarray) -> np.ndarray:
    """Show the first three principal components of feature maps as red, green and blue.

    float [N, C, h, w] -> uint8 [N, h, w, 3]. The components are those of all N maps together, so
    that the same colour means the same content. The mean over maps is subtracted at each place,
    because otherwise the borders of the pictures dominate. Colours span the 1st to the 99th
    percentile of each component.
    """
    height = features.shape[2]
    features = features - features.mean(axis=0)
    components, _ = principal_components(rearrange(features, "n c h w -> (n h w) c"), 3)
    low, high = np.percentile(components, [1, 99], axis=0)
    colours = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    maps = rearrange(colours, "(n h w) c -> n h w c", n=len(features), h=height)
    return (255 * maps).round().astype(np.uint8)


def compose_episodes(embeddings: list[np.ndarray], times: list[np.ndarray]) -> Figure:
    """Plot the two first principal components of embeddings, coloured by time and by episode.

    embeddings: float [T, D] per episode; times: float [T] in [0, 1]
    """
    points, share = principal_components(np.concatenate(embeddings), 2)
    episodes = np.split(points, np.cumsum([len(e) for e in embeddings])[:-1])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    by_time, by_episode = figure.subplots(1, 2, sharex=True, sharey=True)
    for number, (path, moments) in enumerate(zip(episodes, times, strict=True)):
        by_time.plot(*path.T, color="0.8", linewidth=0.8, zorder=1)
        dots = by_time.scatter(*path.T, c=moments, vmin=0, vmax=1, s=22, cmap="viridis", zorder=2)
        by_episode.plot(*path.T, "o-", linewidth=0.6, markersize=4, label=f"episode {number + 1}")
    figure.colorbar(dots, ax=by_time, label="time in the episode", ticks=[0, 0.5, 1])
    by_time.set_title("by time", fontsize=10)
    by_episode.set_title("by episode", fontsize=10)
    by_episode.legend(fontsize=8)
    for axes in (by_time, by_episode):
        axes.set_xlabel(f"component 1 ({share[0]:.0%} of the variance)", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    by_time.set_ylabel(f"component 2 ({share[1]:.0%})", fontsize=9)
    figure.suptitle("embeddings of whole episodes")
    return figure


def principal_components(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first principal components of rows [N, D], and their shares of the variance.

    Returns (float [N, count], float [count]). Components that do not exist are 0. The largest
    weight of a component is positive, so that pictures of successive steps are not mirrored.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    directions, variances = directions[:count], values**2
    largest = np.abs(directions).argmax(axis=1)[:, None]
    directions = directions * np.sign(np.take_along_axis(directions, largest, axis=1))
    missing = count - len(directions)
    components = np.pad(centred @ directions.T, ((0, 0), (0, missing)))
    return components, np.pad(variances[:count] / max(variances.sum(), 1e-12), (0, missing))


def _rasterise(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(110)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
