"""The picture of an inspection: a PNG with charts and example frames."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from mcr.data.index import Index
from mcr.data.inspection import Inspection, thumbnail_stride
from mcr.data.inspection_report import SHORT, duration, instructions_per_episode
from mcr.data.inspection_signals import Dimension

_BLUE, _RED, _GREY, _INK = "#3b6ea8", "#c8553d", "#b8bec6", "#2b2f36"
_OUTCOMES = {"success": _BLUE, "failure": _RED, "": _GREY}
_MAX_HISTOGRAMS = 32
_GAP = 6  # pixels between the frames of the contact sheet
_CAPTION = 32  # pixels above each of its rows


def draw_inspection(found: Inspection, path: str | Path) -> None:
    """Write a PNG: lengths, labs and outcomes, language, action distributions, example frames."""
    figure = compose_figure(found)
    with warnings.catch_warnings():  # instructions come in every script, the font does not
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(path, dpi=110)


def compose_figure(found: Inspection) -> Figure:
    """Return the picture as a figure, to save or to embed."""
    index = found.index
    action = [d for d in found.dimensions if d.signal in index.action][:_MAX_HISTOGRAMS]
    sheet = _contact_sheet(found)
    width = 14.0
    heights = [3.1, 2.1 * math.ceil(len(action) / 8), width * sheet.shape[0] / sheet.shape[1] + 0.5]
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout=layout)
    steps = int(index.lengths.sum())
    figure.suptitle(
        f"{index.source.parent.name}/{index.source.name}:  {len(index):,} episodes, "
        f"{steps:,} steps" + (f", {duration(steps / index.schema.hz)}" if index.schema.hz else ""),
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

    counts = np.bincount(instructions_per_episode(index), minlength=len(index.languages) + 1)
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
    """Return the frames side by side as uint8 [H, W, 3].

    There is a row per example, with room for a caption above it, and a column per camera and step.
    """
    stride = thumbnail_stride(found.index)
    largest = found.index.sizes.max(axis=(0, 1)).tolist()
    height, width = (math.ceil(size / stride) for size in largest)
    rows = [[frame for camera in e.frames for frame in camera] for e in found.examples]
    shape = (len(rows) * (height + _CAPTION), len(rows[0]) * (width + _GAP) - _GAP, 3)
    sheet = np.full(shape, 255, np.uint8)
    for number, frames in enumerate(rows):
        bottom = (number + 1) * (height + _CAPTION)
        for column, frame in enumerate(frames):
            left = column * (width + _GAP)
            cell = sheet[bottom - height : bottom, left : left + width]
            shown = np.full_like(cell, 225) if frame is None else frame
            cell[: shown.shape[0], : shown.shape[1]] = shown
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
                shown = column * len(example.frames) // len(frames)
                has = found.index.sizes[example.row, shown, 0] > 0
                word, colour = ("unreadable", _RED) if has else ("no camera", _INK)
                axes.text(middle, top + row_height / 2, word, color=colour, ha="center")


def _caption(index: Index, row: int) -> str:
    episode = index.table.iloc[row]
    text = index.text(row)
    text = text if len(text) <= 100 else f"{text[:97]}..."
    parts = (*episode[["name", "lab", "outcome"]], f"{episode['length']} steps", text)
    return "  |  ".join(part for part in parts if part)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
