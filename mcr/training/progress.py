"""The progress of a pre-training run: its log, what the terminal shows, and its speed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from mcr.runs.log import MetricsLog

T = TypeVar("T")


class TrainingLog(MetricsLog):
    """The metrics log of a pre-training run, with a progress bar on the terminal.

    Where standard error is not a terminal, a line per logged step is printed instead of the bar.
    """

    def __init__(
        self, run_dir: Path, step: int, num_steps: int, wandb_config: dict[str, Any] | None = None
    ):
        """step: the steps that are done; num_steps: those of the whole run."""
        super().__init__(run_dir, "step", step, wandb_config)
        self._bar = tqdm(total=num_steps, initial=step, unit="step", desc="train", disable=None)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        super().__exit__(kind, error, traceback)

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.update()

    def write(self, count: int, split: str, metrics: dict[str, float]) -> None:
        super().write(count, split, metrics)
        if split == "train":
            shown = {"loss": f"{metrics['loss']:.3f}"}
            if "images_per_s" in metrics:
                shown["images/s"] = f"{metrics['images_per_s']:.0f}"
                shown["waiting"] = f"{metrics['data_wait']:.0%}"
            self._bar.set_postfix(shown)
        if self._bar.disable or split == "val":
            chosen = [
                f"{name} {value:.4g}"
                for name, value in metrics.items()
                if name == "loss" or name.endswith(("/loss", "accuracy", "images_per_s"))
            ]
            self._bar.write(f"step {count} {split}: {', '.join(chosen)}")


class Meter:
    """Images per second, and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def reset(self) -> None:
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the same batches, and count the time until each arrives as waiting for data."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def count(self, images: int) -> None:
        self._images += images

    def read(self) -> dict[str, float]:
        """Return {"images_per_s", "data_wait"} since the last call of `read` or `reset`."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        result = {"images_per_s": self._images / elapsed, "data_wait": self._waited / elapsed}
        self.reset()
        return result


def to_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Fetch scalar tensors with a single transfer from the device."""
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def mean_of(batches: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over batches of equal size."""
    return {key: math.fsum(b[key] for b in batches) / len(batches) for key in batches[0]}
