"""Watch: what became of each step, heard from the device without making it wait.

A step leaves its flags on the device: not finite, stop. On a GPU they are read when the next step
is already queued, so that the device always has work; on a CPU at once. A step that was not finite
has changed nothing meanwhile, nor have those after it: the engine sees to that on the device.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcr.data.batch import Batch
from mcr.errors import UserError
from mcr.training.engine import Step


class NonFinite(UserError):
    """A loss or gradient is not finite; raised before it could reach the weights."""


class Verdict(NamedTuple):
    """What became of step `number`, on any process; its losses are still this process's."""

    number: int
    bad_loss: bool
    bad_gradient: bool
    wants_to_stop: bool
    losses: dict[str, Tensor]


class Watch:
    """Collects steps' flags in order and gives out verdicts as they come in."""

    def __init__(self, device: torch.device):
        self._lag = 1 if device.type == "cuda" else 0
        self._underway: deque[tuple[int, Tensor, torch.cuda.Event | None, dict[str, Tensor]]]
        self._underway = deque()

    def add(self, number: int, step: Step) -> None:
        """Step `number` has been queued."""
        losses = {name: v for name, v in step.metrics.items() if name.endswith("loss")}
        flags, event = step.flags, None
        if flags.is_cuda:
            flags = torch.empty(flags.shape, pin_memory=True)
            flags.copy_(step.flags, non_blocking=True)
            event = torch.cuda.Event(blocking=True)
            event.record()
        self._underway.append((number, flags, event, losses))

    def verdicts(self, all_steps: bool) -> list[Verdict]:
        """Of the steps that are over and not yet judged; all_steps: wait for the newest, too."""
        found = []
        while len(self._underway) > (0 if all_steps else self._lag):
            number, flags, event, losses = self._underway.popleft()
            if event is not None:
                event.synchronize()
            bad_loss, bad_gradient, stop = map(bool, flags.tolist())
            found.append(Verdict(number, bad_loss, bad_gradient, stop, losses))
        return found


def report_non_finite(path: Path, verdict: Verdict, losses: dict[str, float], batch: Batch) -> str:
    """Write what is known of a step that was not finite to `path`; the sentence about it.

    losses: means over processes; batch: the whole batch, read again
    """
    what = "loss" if verdict.bad_loss else "gradient norm"
    clips = non_finite_clips(batch)
    report: dict[str, Any] = {
        "step": verdict.number,
        "what": what,
        "losses": {name: str(value) for name, value in losses.items()},
        "samples": batch.samples.tolist(),
        "clips_with_non_finite_signals": clips,
    }
    path.write_text(json.dumps(report, indent=1))
    return (
        f"the {what} at step {verdict.number} is not finite ({losses}); the weights are as they "
        f"were before it; samples {batch.samples[0]}..{batch.samples[-1]}, clips with "
        f"non-finite signals: {clips}; see {path}"
    )


def non_finite_clips(batch: Batch) -> list[int]:
    """Sample numbers of the clips whose states or actions are not finite."""
    signals = (batch.actions, batch.window_states, batch.window_actions)
    finite = torch.stack([s.flatten(1).isfinite().all(1) for s in signals]).all(0)
    return batch.samples[~finite].tolist()
