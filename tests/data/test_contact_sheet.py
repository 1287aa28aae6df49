"""The contact sheet is read back from its PNG. Its frames are black, so lime is a crop box."""

import numpy as np
import pytest
import torch
from PIL import Image

from mcr.data.batch import NUM_FRAMES, Batch
from mcr.data.contact_sheet import draw_contact_sheet


def batch_of(num_clips: int, crops: torch.Tensor) -> Batch:
    return Batch(
        frames=torch.zeros(num_clips, NUM_FRAMES, 3, 90, 160, dtype=torch.uint8),
        crops=crops.expand(num_clips, NUM_FRAMES, 4),
        colors=torch.tensor([[1.0], [0.0]]).expand(num_clips, NUM_FRAMES, 2, 3),
        actions=torch.zeros(num_clips, NUM_FRAMES, 7),
        window_states=torch.zeros(num_clips, 2, 3, 14),
        window_actions=torch.zeros(num_clips, 2, 2, 7),
        samples=torch.arange(num_clips),
    )


def draw(batch, path, **options) -> np.ndarray:
    draw_contact_sheet(batch, path, **options)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def long_runs(present: np.ndarray) -> list[tuple[int, int]]:
    """(begin, end) of each run of True that is neither a letter nor the border of a frame."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(int), [0]])))
    pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(begin, end) for begin, end in pairs if end - begin > 50]


def test_each_frame_shows_its_crop_box(tmp_path):
    # top, left, height, width: five different boxes, in one clip
    boxes = torch.tensor(
        [[10, 20, 60, 90], [0, 80, 45, 80], [30, 10, 50, 50], [45, 0, 45, 140], [20, 40, 30, 60]]
    ).float()
    page = draw(batch_of(1, boxes), tmp_path / "sheet.png")
    lime = (page[..., 1] > 150) & (page[..., [0, 2]].max(axis=-1) < 60)
    frame = lime | (page.max(axis=-1) < 40)

    (rows,) = long_runs(frame.mean(axis=1) > 0.8)
    columns = long_runs(frame[slice(*rows)].mean(axis=0) > 0.8)
    assert len(columns) == NUM_FRAMES
    for (begin, end), box in zip(columns, boxes.numpy(), strict=True):
        ys, xs = np.nonzero(lime[slice(*rows), begin:end])
        drawn = [ys.min(), xs.min(), np.ptp(ys), np.ptp(xs)]
        assert np.abs(drawn - box * (end - begin) / 160).max() < 4  # pixels: the line's width


def test_each_clip_has_a_row_up_to_the_number_asked_for(tmp_path):
    batch = batch_of(4, torch.tensor([10.0, 10.0, 50.0, 50.0]))
    heights = [len(draw(batch, tmp_path / "sheet.png", clips=clips)) for clips in (1, 2, 4, 9)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=1)
    assert heights[2] == heights[3] == pytest.approx(4 * heights[0], abs=2)
