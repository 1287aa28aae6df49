"""Contact sheet: a picture of clips from the loader, with a box around what the network sees."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from mcr.data.batch import Batch

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

_TITLES = ("start", "early", "middle", "late", "end")


def draw_contact_sheet(batch: Batch, path: str | Path, clips: int = 6) -> None:
    """Write a PNG with a row per clip and a column per frame.

    clips: draw at most so many
    """
    clips = min(clips, len(batch.frames))
    figure, axes = pyplot.subplots(
        clips, len(_TITLES), figsize=(12, 1.45 * clips), squeeze=False, layout="constrained"
    )
    for clip, row in enumerate(axes):
        for frame, cell in enumerate(row):
            cell.imshow(batch.frames[clip, frame].permute(1, 2, 0).numpy())
            top, left, height, width = batch.crops[clip, frame].tolist()
            cell.add_patch(Rectangle((left, top), width, height, fill=False, color="lime"))
            cell.set_xticks([])
            cell.set_yticks([])
            if clip == 0:
                cell.set_title(_TITLES[frame])
        row[0].set_ylabel(f"sample {int(batch.samples[clip])}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
