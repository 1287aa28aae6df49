"""Steps: robot data as a map-style data set of single steps, for policies.

What a policy sees at a step and what the robot did from then on. It is a plain map-style data set:
any DataLoader, sampler or trainer of PyTorch can use it, with workers of any start method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mcr.data.frames import FrameReader
from mcr.data.index import Index
from mcr.errors import UserError, nearest


class Steps(Dataset):
    """All steps of the chosen episodes. Item i is a dict:

        images  {camera: uint8 [3, H, W]}      with `history` > 1: [history, 3, H, W]
        state   float32 [S]                    with `history` > 1: [history, S]
        action  float32 [chunk, A]             the actions of this step and those that follow
        mask    bool [chunk]                   False where the chunk reaches beyond the episode;
                                               there the last action is repeated
        text    str                            the instruction, "" if there is none
        episode, step   int                    the episode's row, and the step in it

    S and A are the dimensions of what the schema calls state and action. A default collate makes
    batches of it.
    """

    def __init__(
        self,
        index: Index,
        reader: FrameReader,
        chunk: int = 1,
        cameras: Sequence[str] | None = None,
        history: int = 1,
        episodes: Sequence[str | int] | None = None,
        state: bool = True,
    ):
        """
        chunk:    number of actions
        cameras:  None = all that the schema uses by default; episodes that lack one are left out
        history:  number of observations, this step's the last; before the first step it is repeated
        episodes: names or rows; None = all
        state:    False leaves the state out

        Raises UserError for an unknown camera or episode, if the data has no action, and if no
        episode is left.
        """
        if chunk < 1 or history < 1:
            raise UserError(f"chunk={chunk} and history={history} must be at least 1")
        self._index, self._reader = index, reader
        self.chunk, self.history = chunk, history
        self.cameras = tuple(index.default_cameras if cameras is None else cameras)
        self._cameras = [index.camera(camera) for camera in self.cameras]
        self._action = index.signal_columns("action")
        self._state = index.signal_columns("state") if state and index.state else None
        rows = range(len(index)) if episodes is None else [index.row(e) for e in episodes]
        sizes = np.asarray(reader.sizes)[:, self._cameras, 0]
        self.rows = np.array([row for row in rows if (sizes[row] > 0).all()], np.int64)
        if len(self.rows) == 0:
            raise UserError(
                f"{index.source}: no episode has all of the cameras {', '.join(self.cameras)}"
            )
        self._ends = np.cumsum(index.lengths[self.rows])
        self._texts = [index.text(int(row)) for row in self.rows]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: int) -> dict[str, Any]:
        item = range(len(self))[item]
        place = int(np.searchsorted(self._ends, item, side="right"))
        row, index = int(self.rows[place]), self._index
        start, length = int(index.starts[row]), int(index.lengths[row])
        step = item - int(self._ends[place]) + length
        ahead = step + np.arange(self.chunk)
        content: dict[str, Any] = {
            "images": {
                name: self._images(row, camera, step)
                for name, camera in zip(self.cameras, self._cameras, strict=True)
            },
            "action": self._signal(start + np.minimum(ahead, length - 1), self._action),
            "mask": torch.from_numpy(ahead < length),
            "text": self._texts[place],
            "episode": row,
            "step": step,
        }
        if self._state is not None:
            before = start + self._seen(step)
            content["state"] = self._signal(before if self.history > 1 else before[0], self._state)
        return content

    def _seen(self, step: int) -> np.ndarray:
        return np.maximum(step - np.arange(self.history)[::-1], 0)

    def _signal(self, steps: np.ndarray, columns: np.ndarray) -> Tensor:
        return torch.from_numpy(self._index.signals[steps[..., None], columns])

    def _images(self, row: int, camera: int, step: int) -> Tensor:
        steps = self._seen(step)
        unique, places = np.unique(steps, return_inverse=True)
        frames = np.stack(list(self._reader.episode(row, camera, unique.tolist())))[places]
        images = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        return images if self.history > 1 else images[0]

    def statistics(self, name: str) -> dict[str, Tensor]:
        """Return "mean" and "std" of "state" or "action" over the chosen episodes, float32 [D]."""
        if name not in ("state", "action"):
            raise UserError(f"statistics of {name!r}{nearest(name, ('state', 'action'))}")
        columns, index = self._index.signal_columns(name), self._index
        values = np.concatenate(
            [
                index.signals[index.starts[row] : index.starts[row] + index.lengths[row]][
                    :, columns
                ]
                for row in self.rows
            ]
        ).astype(np.float64)
        return {
            "mean": torch.tensor(values.mean(0), dtype=torch.float32),
            "std": torch.tensor(values.std(0), dtype=torch.float32),
        }
