"""Batch: the contract between data and objectives.

The loader fills a batch, the pretrainer moves it to the device, and the objectives read it. Its
dimensions come from the data set, never from constants.

    B clips   F = 5 frames   H W pixels   S state dim   A action dim   L window steps
    K actions of a chunk
    G = the frames of a clip that are read: F, or fewer if no loss needs the others
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

START, EARLY, MIDDLE, LATE, END = range(5)  # the five frames of a clip, in time order
NUM_FRAMES = 5
ALL_FRAMES = tuple(range(NUM_FRAMES))
UNNAMED = ""  # the data set of a run that has one `data.root` and no `data.mix`


@dataclass(frozen=True)
class Dimensions:
    """Sizes that the data set gives to the objectives: S, A, L and K above.

    teacher: number of features of the teacher, T; 0 = there is none
    """

    state: int
    action: int
    window: int
    chunk: int = 1
    teacher: int = 0


@dataclass
class Batch:
    """B clips.

    frames:          uint8   [B, G, 3, H, W]   as stored; the device crops and normalises them
    crops:           float32 [B, G, 4]         top, left, height, width in pixels of `frames`
    colors:          float32 [B, G, 2, 3]      gain and offset of red, green and blue, for pixels
                                               in 0..1
    actions:         float32 [B, F, K * A]     the K actions from each of the five frames on
    window_states:   float32 [B, 2, L, S]      states around EARLY (0) and LATE (1)
    window_actions:  float32 [B, 2, L - 1, A]  actions between those states
    samples:         int64   [B]               sample numbers, to name the clips of a bad batch
    """

    frames: Tensor
    crops: Tensor
    colors: Tensor
    actions: Tensor
    window_states: Tensor
    window_actions: Tensor
    samples: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`. The copy from pinned memory is asynchronous."""
        return Batch(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        )

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory. `DataLoader(pin_memory=True)` calls this."""
        return Batch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    @property
    def dimensions(self) -> Dimensions:
        action = self.window_actions.shape[-1]
        return Dimensions(
            state=self.window_states.shape[-1],
            action=action,
            window=self.window_states.shape[-2],
            chunk=self.actions.shape[-1] // action if action else 1,
        )


# The clips of each data set of a run, by its name. They are consecutive clips of one batch. Their
# pictures and signals may have different sizes.
MixedBatch = dict[str, Batch]


def labelled(data_set: str, name: str) -> str:
    """Return the name of something that exists once per data set, such as "bridge/loss"."""
    return f"{data_set}/{name}" if data_set else name


@dataclass
class TaughtBatch(Batch):
    """A batch with a teacher's features of its frames, which the pretrainer adds on the device.

    teacher_features: float32 [B, F, T], without gradient
    """

    teacher_features: Tensor
