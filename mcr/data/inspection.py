"""Inspection: what is this data set? A report for the terminal and one picture.

Everything comes from the index (built on first use), so 100,000 episodes are as quick to inspect as
ten: its arrays are mapped, and signals are looked at over a million steps at most, of whole
episodes drawn at random. It judges nothing and changes nothing: filters are `data/selection.py`,
cleaning is `data/clean.py`. Called by scripts/inspect_dataset.py.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from mcr.data.episode import LANGUAGES
from mcr.data.frames import FrameReader
from mcr.data.index import Index, open_index
from mcr.data.selection import SelectionConfig
from mcr.errors import UserError

CONTROL_HZ = 15  # DROID's rate; no file states it
IDLE_SPEED = 0.05  # rad/s of the fastest joint (3 degrees/s), and gripper strokes/s
SHORT = SelectionConfig().min_frames
DROID_ACTION = "cartesian_position + gripper_position"

_MAX_STEPS = 1_000_000
_MAX_WEIGHED_FOLDERS = 20
_SAME = 1e-4  # commands that differ by less are the same: float32, metres and radians
_BINS = 40
_NEAR_PI = (math.pi - 0.05, math.pi + 0.01)  # DROID's arm has a joint limit 0.07 short of pi
_THUMBNAIL = 320  # pixels that a frame of the contact sheet is wide at most
_MIN_THUMBNAILS = 8  # in a row of it


def open_dataset(path: Path, index_path: Path | None = None) -> Index:
    """Open what `path` is: a tree, RLDS shards, or an index folder (it holds index.json).

    index_path: where the index of a tree or of shards lies; default `<path>.index`. It is built if
    it is not there. Raises UserError if `path` is none of the three, or changed since indexed.
    """
    if not (path / "index.json").is_file():
        return open_index(path, index_path)
    if index_path and index_path.resolve() != path.resolve():
        raise UserError(f"{path} is an index itself; leave --index {index_path} out")
    index = Index(path)
    index.check_source()
    return index


# --------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class Dimension:
    """One dimension of one signal, over the steps looked at; of finite numbers, but the first.

    num_not_finite: NaN and infinities; num_jumps: steps to the next that change it by over pi
    counts, edges:  its histogram between `low` and `high` (1st and 99th percentile), slightly
                    widened: int64 [n], float64 [n + 1]
    """

    signal: str
    number: int
    num_not_finite: int
    num_jumps: int
    minimum: float
    low: float
    mean: float
    std: float
    high: float
    maximum: float
    counts: np.ndarray
    edges: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.signal}[{self.number}]"

    @property
    def remarks(self) -> list[str]:
        """What a user of this dimension should know, one phrase each; mostly nothing."""
        remarks = [f"{self.num_not_finite:,} not finite"] if self.num_not_finite else []
        if self.minimum == self.maximum:
            remarks.append("constant")
        if _NEAR_PI[0] <= max(-self.minimum, self.maximum) <= _NEAR_PI[1]:
            remarks.append(f"reaches +-pi, {self.num_jumps:,} jumps across")
        return remarks


@dataclass(frozen=True)
class ExampleEpisode:
    """frames: per camera, per step (first to last) uint8 [h, w, 3], or None if unreadable."""

    row: int
    frames: list[list[np.ndarray | None]]


@dataclass(frozen=True)
class Inspection:
    """What was found. Episodes and texts are in `index.table`.

    disk:         size of the data in words
    num_steps:    steps whose signals were looked at, of num_episodes whole episodes
    dimensions:   every dimension of every signal
    action_means: "cartesian_position + gripper_position" (of action_dict), ... -> (largest
                  difference to `action`, share of steps that differ); the nearest first
    idle:         share of steps in which nothing moves faster than IDLE_SPEED; None = no joints
    unreadable:   a sentence for each of the examples' frames that could not be read
    """

    index: Index
    disk: str
    num_steps: int
    num_episodes: int
    dimensions: list[Dimension]
    action_means: dict[str, tuple[float, float]]
    idle: float | None
    examples: list[ExampleEpisode]
    unreadable: list[str]


def inspect_dataset(
    index: Index, seed: int = 0, num_examples: int = 6, max_steps: int = _MAX_STEPS
) -> Inspection:
    """Look at a data set. Memory: `max_steps` rows of signals, 200 bytes each in DROID.

    seed: of the episodes shown, and of those looked at where there are more than `max_steps` steps
    """
    generator = np.random.default_rng(seed)
    rows = _draw_rows(np.asarray(index.lengths), max_steps, generator)
    starts, lengths = index.starts[rows], index.lengths[rows]
    signals = np.concatenate(
        [index.signals[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    )
    follows = np.ones(len(signals), bool)  # is the step before this one of the same episode?
    follows[np.cumsum(lengths) - lengths] = False
    shown = generator.permutation(len(index))[:num_examples]
    examples, unreadable = _read_examples(index, np.sort(shown).tolist())
    return Inspection(
        index=index,
        disk=_disk(index, generator),
        num_steps=len(signals),
        num_episodes=len(rows),
        dimensions=[
            _dimension(signal, column - begin, signals[:, column], follows[1:])
            for signal, (begin, end) in index.info["columns"].items()
            for column in range(begin, end)
        ],
        action_means=_action_means(index, signals),
        idle=_idle_share(index, signals, follows[1:]),
        examples=examples,
        unreadable=unreadable,
    )


def _draw_rows(lengths: np.ndarray, max_steps: int, generator: np.random.Generator) -> np.ndarray:
    """All episodes, or as many at random as have `max_steps` steps together; at least one."""
    if lengths.sum() <= max_steps:
        return np.arange(len(lengths))
    rows = generator.permutation(len(lengths))
    count = np.searchsorted(np.cumsum(lengths[rows]), max_steps, side="right")
    return np.sort(rows[: max(1, count)])


def _dimension(signal: str, number: int, values: np.ndarray, follows: np.ndarray) -> Dimension:
    finite = np.isfinite(values)
    kept = values[finite].astype(np.float64) if finite.any() else np.array([math.nan])
    jumps = np.abs(np.diff(kept)) > math.pi
    low, high = np.quantile(kept, [0.01, 0.99])
    margin = 0.1 * (high - low) or 0.5
    bounds = (low - margin, high + margin) if finite.any() else (0.0, 1.0)
    counts, edges = np.histogram(kept, _BINS, bounds)
    return Dimension(
        signal,
        number,
        num_not_finite=int((~finite).sum()),
        num_jumps=int(jumps[_are_neighbours(finite, follows)].sum()),
        minimum=float(kept.min()),
        low=float(low),
        mean=float(kept.mean()),
        std=float(kept.std()),
        high=float(high),
        maximum=float(kept.max()),
        counts=counts,
        edges=edges,
    )


def _are_neighbours(finite: np.ndarray, follows: np.ndarray) -> np.ndarray:
    """Of each finite value and the next one: are they neighbours in time, too? bool [n - 1]"""
    positions = np.flatnonzero(finite)
    return (np.diff(positions) == 1) & follows[positions[1:] - 1]


def _action_means(index: Index, signals: np.ndarray) -> dict[str, tuple[float, float]]:
    columns = index.info["columns"]
    if "action" not in columns:
        return {}
    action = signals[:, slice(*columns["action"])]
    commands = [key for key in columns if key.startswith("action_dict/")]
    grippers = [key for key in commands if "gripper" in key]
    found = {}
    for arm, gripper in product([key for key in commands if key not in grippers], grippers):
        command = signals[:, index.columns((arm, gripper))]
        if command.shape != action.shape:
            continue
        with np.errstate(invalid="ignore"):  # NaN and infinities are reported elsewhere
            difference = np.abs(command - action)
        difference[(command == action) | (np.isnan(command) & np.isnan(action))] = 0
        worst = np.nan_to_num(difference.max(axis=1), nan=np.inf)
        name = f"{arm} + {gripper}".replace("action_dict/", "")
        found[name] = (float(worst.max()), float((worst > _SAME).mean()), float(np.median(worst)))
    nearest_first = sorted(found.items(), key=lambda item: item[1][2])
    return {name: (largest, share) for name, (largest, share, _) in nearest_first}


def _idle_share(index: Index, signals: np.ndarray, follows: np.ndarray) -> float | None:
    moving = tuple(k for k in ("joint_position", "gripper_position") if k in index.info["columns"])
    if "joint_position" not in moving or not follows.any():
        return None
    with np.errstate(invalid="ignore"):  # a step to or from NaN is not idle
        steps = np.diff(signals[:, index.columns(moving)], axis=0)[follows]
    return float((np.abs(steps).max(axis=1) * CONTROL_HZ < IDLE_SPEED).mean())


def _disk(index: Index, generator: np.random.Generator) -> str:
    if index.kind == "rlds":
        sizes = [(index.source / name).stat().st_size for name in index.info["shards"]]
        return f"{_size(sum(sizes))} in {len(sizes):,} shards"
    rows = generator.permutation(len(index))[:_MAX_WEIGHED_FOLDERS]
    folders = [index.source / index.names[row].decode() for row in rows]
    weighed = sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())
    if len(rows) == len(index):
        return f"{_size(weighed)} in {len(index):,} folders"
    frames = int(index.lengths[rows].sum())
    total = weighed * int(index.lengths.sum()) / frames
    return f"about {_size(total)} (from {len(rows)} of {len(index):,} folders, by frames)"


def _read_examples(index: Index, rows: list[int]) -> tuple[list[ExampleEpisode], list[str]]:
    unreadable: list[str] = []
    shrink = _shrink(index)

    def read(row: int, camera: int, step: int) -> np.ndarray | None:
        try:
            return reader.read(row, camera, step)[::shrink, ::shrink]
        except UserError as error:
            unreadable.append(str(error))
            return None

    cameras = range(len(index.cameras))
    num_steps = max(3, math.ceil(_MIN_THUMBNAILS / len(cameras)))
    examples = []
    with contextlib.closing(FrameReader(index)) as reader:
        for row in rows:
            steps = np.linspace(0, index.lengths[row] - 1, num_steps).astype(int).tolist()
            frames = [[read(row, camera, step) for step in steps] for camera in cameras]
            examples.append(ExampleEpisode(row, frames))
    return examples, unreadable


def _shrink(index: Index) -> int:
    """Of each so many pixels, one is shown."""
    return math.ceil(index.frame_size[1] / _THUMBNAIL)


# --------------------------------------------------------------------------- words


_NEXT_LINE = "\n" + " " * 13  # under the text of the line before


def describe(found: Inspection) -> str:
    """The report: a block of aligned lines per topic."""
    index, table = found.index, found.index.table
    frames = int(index.lengths.sum())
    height, width = index.frame_size
    kind = "RLDS shards" if index.kind == "rlds" else f"tree of {index.suffix} files"
    facts = {
        "data set": f"{index.source} ({kind})",
        "index": str(index.path),
        "fingerprint": index.fingerprint,
        "size": f"{len(index):,} episodes, {frames:,} steps, {_duration(frames / CONTROL_HZ)} "
        f"at {CONTROL_HZ} Hz",
        "frames": f"{height} x {width} (height x width), cameras {', '.join(index.cameras)}",
        "disk": found.disk,
        "lengths": _describe_lengths(np.asarray(index.lengths)),
        "outcomes": _describe_counts(table["outcome"]),
        "labs": _describe_counts(table["lab"]),
        "sessions": _describe_counts(table["session"], top=4),
        "language": _describe_language(table),
        "action is": _describe_action(found.action_means),
        "idle": _describe_idle(found.idle),
    }
    lines = [f"{name:<12} {text}" for name, text in facts.items()]
    return "\n".join([*lines, "", *_describe_signals(found), "", *_describe_problems(found)])


def _describe_lengths(lengths: np.ndarray) -> str:
    num_short = int((lengths < SHORT).sum())
    counts, _ = np.histogram(lengths, _BINS)
    return (
        f"{lengths.min()} .. {lengths.max()} steps, median {np.median(lengths):.0f}; "
        f"{_share(num_short, len(lengths))} shorter than {SHORT}{_NEXT_LINE}"
        f"{lengths.min()} |{_sparkline(counts)}| {lengths.max()}"
    )


def _sparkline(counts: np.ndarray) -> str:
    heights = np.ceil(8 * counts / counts.max()).astype(int)  # what is there is seen
    return "".join(" ▁▂▃▄▅▆▇█"[height] for height in heights)


def _describe_counts(values: pd.Series, top: int = 8) -> str:
    counts = values.replace("", "not stated").value_counts()
    if list(counts.index) == ["not stated"]:
        return "not stated"
    shown = [f"{name} {_share(n, len(values))}" for name, n in counts.head(top).items()]
    more = f", ... ({len(counts):,} in all)" if len(counts) > top else ""
    return ", ".join(shown) + more


def _describe_language(table: pd.DataFrame) -> str:
    given = instructions_per_episode(table)
    texts = pd.concat([table[key] for key in LANGUAGES])
    texts = texts[texts != ""]
    if texts.empty:
        return "no instructions"
    most, times = next(iter(texts.value_counts().items()))
    num = len(table)
    return (
        f"none {_share(int((given == 0).sum()), num)}, any {_share(int((given > 0).sum()), num)}, "
        f"all three {_share(int((given == len(LANGUAGES)).sum()), num)}; "
        f"{texts.nunique():,} different{_NEXT_LINE}"
        f"words: {', '.join(typical_words(texts))}{_NEXT_LINE}"
        f"most common ({times:,} of {len(texts):,}): {str(most)!r}"
    )


def instructions_per_episode(table: pd.DataFrame) -> np.ndarray:
    """How many of the three instructions an episode has: int64 [N], 0 .. 3."""
    return (table[list(LANGUAGES)] != "").to_numpy().sum(axis=1)


_FILLERS = {"and", "for", "from", "into", "onto", "out", "that", "the", "then", "this", "with"}


def typical_words(texts: pd.Series, top: int = 12) -> list[str]:
    """The most frequent words that carry meaning, lower case."""
    words = (word for text in texts for word in re.findall(r"[^\W\d_]{3,}", text.lower()))
    return [word for word, _ in Counter(w for w in words if w not in _FILLERS).most_common(top)]


def _describe_action(means: dict[str, tuple[float, float]]) -> str:
    if not means:
        return "unknown: no action_dict of its width to compare it with"
    nearest = next(iter(means))
    largest, share = means.get(DROID_ACTION, means[nearest])
    name = DROID_ACTION if DROID_ACTION in means else nearest
    if share == 0:
        return f"{name} of action_dict (largest difference {largest:.2g})"
    text = f"not {name} of action_dict: {share:.1%} of steps differ, by up to {largest:.3g}"
    return text if nearest == name else f"{text}{_NEXT_LINE}nearest to it: {nearest}"


def _describe_idle(idle: float | None) -> str:
    if idle is None:
        return "unknown: no joint_position"
    return f"{idle:.1%} of steps: no joint faster than {IDLE_SPEED} rad/s, and the gripper still"


def _describe_signals(found: Inspection) -> list[str]:
    """Each dimension of states and action; of the rest (in action_dict, ...) what is remarkable."""
    detailed = [d for d in found.dimensions if _is_detailed(d)]
    width = max((len(d.name) for d in detailed), default=0)
    numbers = ("min", "1%", "mean", "std", "99%", "max")
    lines = ["".join([f"{'signal':<{width}}", *(f"{name:>9}" for name in numbers)])]
    for d in detailed:
        values = (d.minimum, d.low, d.mean, d.std, d.high, d.maximum)
        cells = "".join(f"{value:9.3f}" for value in values)
        lines.append(f"{d.name:<{width}}{cells}  {', '.join(d.remarks)}".rstrip())
    rest = Counter(d.signal for d in found.dimensions if not _is_detailed(d))
    if rest:
        lines.append("also: " + ", ".join(f"{name} ({size})" for name, size in rest.items()))
    for d in found.dimensions:
        if d.remarks and not _is_detailed(d):
            lines.append(f"  {d.name}: {', '.join(d.remarks)}")
    if found.num_episodes < len(found.index):
        lines.append(
            f"over {found.num_steps:,} steps of {found.num_episodes:,} random episodes, "
            "whole ones; so are `action is` and `idle`"
        )
    return lines


def _is_detailed(dimension: Dimension) -> bool:
    return "/" not in dimension.signal and dimension.signal not in ("discount", "reward")


def _describe_problems(found: Inspection) -> list[str]:
    problems = found.index.info["problems"]
    lines = [f"left out of the index: {len(problems):,}" if problems else "left out: nothing"]
    lines += [f"  {problem}" for problem in problems[:10]]
    if len(problems) > 10:
        lines.append(f"  ... and {len(problems) - 10:,} more: see {found.index.path}/index.json")
    if found.unreadable:
        num_frames = sum(len(frames) for e in found.examples for frames in e.frames)
        lines.append(f"unreadable frames: {len(found.unreadable)} of {num_frames} tried")
        lines += [f"  {sentence}" for sentence in found.unreadable[:10]]
    return lines


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.0%})"


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


# --------------------------------------------------------------------------- picture

_BLUE, _RED, _GREY, _INK = "#3b6ea8", "#c8553d", "#b8bec6", "#2b2f36"
_OUTCOMES = {"success": _BLUE, "failure": _RED, "": _GREY}
_GAP = 6  # pixels between the frames of the contact sheet
_CAPTION = 32  # pixels above each of its rows


def draw_inspection(found: Inspection, path: str | Path) -> None:
    """Write a PNG: lengths, labs and outcomes, language, action distributions, example frames."""
    figure = compose_figure(found)
    with warnings.catch_warnings():  # instructions come in every script, the font does not
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(path, dpi=110)


def compose_figure(found: Inspection) -> Figure:
    """The picture, to be saved or embedded."""
    index = found.index
    action = [d for d in found.dimensions if d.signal == "action"]
    sheet = _contact_sheet(found)
    width = 14.0
    heights = [3.1, 2.1 * math.ceil(len(action) / 8), width * sheet.shape[0] / sheet.shape[1] + 0.5]
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout=layout)
    steps = int(index.lengths.sum())
    figure.suptitle(
        f"{index.source.parent.name}/{index.source.name}:  {len(index):,} episodes, "
        f"{steps:,} steps, {_duration(steps / CONTROL_HZ)}",
        fontsize=15,
        color=_INK,
        parse_math=False,
    )
    used = [height for height in heights if height]  # some data sets have no `action`
    panels = figure.subfigures(len(used), 1, height_ratios=used, squeeze=False)[:, 0]
    _draw_episodes(panels[0], index)
    if action:
        _draw_distributions(panels[1], action)
    _draw_examples(panels[-1], sheet, found)
    return figure


def _draw_episodes(panel: SubFigure, index: Index) -> None:
    lengths, labs, language = panel.subplots(1, 3, width_ratios=[1.3, 1, 0.8])
    lengths.hist(index.lengths, bins=min(60, 4 + len(index) // 4), color=_BLUE)
    lengths.axvline(SHORT, color=_RED, linestyle="--", linewidth=1.2)
    num_short = int((index.lengths < SHORT).sum())
    _label(lengths, f"lengths: {num_short:,} shorter than {SHORT}", "steps", "episodes")
    lengths.yaxis.set_major_locator(MaxNLocator(integer=True))

    _draw_labs(labs, index.table)

    counts = np.bincount(instructions_per_episode(index.table), minlength=len(LANGUAGES) + 1)
    bars = language.bar(range(len(counts)), counts, color=_BLUE, width=0.7)
    language.bar_label(bars, [f"{n:,}" for n in counts], fontsize=8, color=_INK)
    language.set_xticks(range(len(counts)))
    language.yaxis.set_major_locator(MaxNLocator(integer=True))
    language.margins(y=0.12)
    _label(language, "language", "instructions per episode", "episodes")


def _draw_labs(axes: Axes, table: pd.DataFrame, top: int = 12) -> None:
    counts = table.groupby(["lab", "outcome"]).size().unstack(fill_value=0)
    order = counts.sum(axis=1).sort_values(ascending=False).index[:top]
    left = np.zeros(len(order))
    for outcome, colour in _OUTCOMES.items():
        if outcome in counts:
            values = counts.loc[order, outcome].to_numpy()
            label = outcome or "not stated"
            axes.barh(range(len(order)), values, 0.75, left, color=colour, label=label)
            left += values
    names = [str(lab)[:20] or "not stated" for lab in order]
    axes.set_yticks(range(len(order)), names, fontsize=8, parse_math=False)
    axes.set_ylim(max(len(order), 3) - 0.4, -0.6)  # the largest on top, and no bar too fat
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.98))
    _label(axes, "labs" if len(counts) <= top else f"{top} of {len(counts)} labs", "episodes", "")


def _draw_distributions(panel: SubFigure, dimensions: list[Dimension]) -> None:
    panel.suptitle(
        "actions, from the 1st to the 99th percentile; line: mean", fontsize=10, color=_INK
    )
    num_rows = math.ceil(len(dimensions) / 8)
    cells = panel.subplots(num_rows, math.ceil(len(dimensions) / num_rows), squeeze=False).ravel()
    for cell in cells[len(dimensions) :]:
        cell.set_axis_off()
    for cell, dimension in zip(cells, dimensions, strict=False):
        cell.stairs(dimension.counts, dimension.edges, fill=True, color=_BLUE)
        cell.axvline(dimension.mean, color=_INK, linewidth=1)
        _label(cell, dimension.name, "\n".join(dimension.remarks), "")
        cell.xaxis.label.set_color(_RED)
        cell.set_yticks([])
        cell.spines["left"].set_visible(False)


def _contact_sheet(found: Inspection) -> np.ndarray:
    """A row per example with room for a caption above it, a column per camera and step: uint8."""
    shrink = _shrink(found.index)
    height, width = (math.ceil(size / shrink) for size in found.index.frame_size)
    rows = [[frame for camera in e.frames for frame in camera] for e in found.examples]
    shape = (len(rows) * (height + _CAPTION), len(rows[0]) * (width + _GAP) - _GAP, 3)
    sheet = np.full(shape, 255, np.uint8)
    for number, frames in enumerate(rows):
        bottom = (number + 1) * (height + _CAPTION)
        for column, frame in enumerate(frames):
            left = column * (width + _GAP)
            cell = sheet[bottom - height : bottom, left : left + width]
            cell[:] = 225 if frame is None else frame
    return sheet


def _draw_examples(panel: SubFigure, sheet: np.ndarray, found: Inspection) -> None:
    axes = panel.subplots()
    axes.imshow(sheet)
    axes.set_axis_off()
    row_height = len(sheet) / len(found.examples)
    camera_width = (sheet.shape[1] + _GAP) / len(found.index.cameras)
    for number, camera in enumerate(found.index.cameras):
        place = (number + 0.5) * camera_width
        axes.text(place, -12, f"{camera}: first to last step", ha="center", fontsize=10, color=_INK)
    for number, example in enumerate(found.examples):
        top = number * row_height
        caption = _caption(found.index, example.row)
        axes.text(0, top + _CAPTION - 8, caption, fontsize=8, color=_INK, parse_math=False)
        frames = [frame for camera in example.frames for frame in camera]
        for column, frame in enumerate(frames):
            if frame is None:
                middle = (column + 0.5) * (sheet.shape[1] + _GAP) / len(frames)
                axes.text(middle, top + row_height / 2, "unreadable", color=_RED, ha="center")


def _caption(index: Index, row: int) -> str:
    episode = index.table.iloc[row]
    text = next((episode[key] for key in LANGUAGES if episode[key]), "")
    text = text if len(text) <= 100 else f"{text[:97]}..."
    parts = (*episode[["name", "lab", "outcome"]], f"{episode['length']} steps", text)
    return "  |  ".join(part for part in parts if part)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
