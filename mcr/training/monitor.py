"""The monitor of a run: was each step finite, and has a process been asked to stop?

A step leaves the answers on the device as flags, see `engine.Step`. On a GPU the monitor reads them
only after the next step has been queued, so that the GPU always has work; on a CPU it reads them at
once. This is safe: on the device, a step that is not finite changes no weight, and no later step
does either.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcr.data.batch import Batch
from mcr.errors import UserError
from mcr.runs.atomic import write_text
from mcr.training.engine import Step


class NonFinite(UserError):
    """A loss or gradient is not finite. The weights are those from before that step."""


class StepStatus(NamedTuple):
    """What is known of a finished step.

    number:                 of the step
    bad_loss, bad_gradient: not finite, on any process
    wants_to_stop:          any process was asked to stop
    losses:                 of this process, still on the device
    """

    number: int
    bad_loss: bool
    bad_gradient: bool
    wants_to_stop: bool
    losses: dict[str, Tensor]


class StepMonitor:
    """Takes steps in order as they are queued, and returns their status once they are finished."""

    def __init__(self, device: torch.device):
        self._lag = 1 if device.type == "cuda" else 0
        self._queued: deque[tuple[int, Tensor, torch.cuda.Event | None, dict[str, Tensor]]]
        self._queued = deque()

    def add(self, number: int, step: Step) -> None:
        """Add step `number`, which has been queued on the device."""
        losses = {name: v for name, v in step.metrics.items() if name.endswith("loss")}
        flags, event = step.flags, None
        if flags.is_cuda:
            flags = torch.empty(flags.shape, pin_memory=True)
            flags.copy_(step.flags, non_blocking=True)
            event = torch.cuda.Event(blocking=True)
            event.record()
        self._queued.append((number, flags, event, losses))

    def finished(self, wait: bool) -> list[StepStatus]:
        """Return the status of each step that has finished since the last call.

        wait: wait for the newest step, too, instead of leaving it to the next call
        """
        statuses = []
        while len(self._queued) > (0 if wait else self._lag):
            number, flags, event, losses = self._queued.popleft()
            if event is not None:
                event.synchronize()
            bad_loss, bad_gradient, stop = map(bool, flags.tolist())
            statuses.append(StepStatus(number, bad_loss, bad_gradient, stop, losses))
        return statuses


def report_non_finite(
    path: Path, status: StepStatus, losses: dict[str, float], batches: Sequence[Batch]
) -> str:
    """Write to `path` what is known of a step that was not finite. Returns a sentence about it.

    losses: means over processes; batches: all clips of the step, read again
    """
    what = "loss" if status.bad_loss else "gradient norm"
    samples = sorted(number for batch in batches for number in batch.samples.tolist())
    clips = sorted(number for batch in batches for number in non_finite_clips(batch))
    report: dict[str, Any] = {
        "step": status.number,
        "what": what,
        "losses": {name: str(value) for name, value in losses.items()},
        "samples": samples,
        "clips_with_non_finite_signals": clips,
    }
    write_text(path, json.dumps(report, indent=1))
    return (
        f"the {what} at step {status.number} is not finite ({losses}); the weights are as they "
        f"were before it; samples {samples[0]}..{samples[-1]}, clips with "
        f"non-finite signals: {clips}; see {path}"
    )


def non_finite_clips(batch: Batch) -> list[int]:
    """Sample numbers of the clips whose states or actions are not finite."""
    signals = (batch.actions, batch.window_states, batch.window_actions)
    finite = torch.stack([s.flatten(1).isfinite().all(1) for s in signals]).all(0)
    return batch.samples[~finite].tolist()
