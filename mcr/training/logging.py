"""Logs of a run: metrics.jsonl always, TensorBoard beside it, one line of progress on the terminal.

metrics.jsonl: one JSON object per line, {"step": ..., "split": "train" | "val", "<metric>": ...};
each step appears once, also after a resume.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid
from tqdm import tqdm


class RunLog:
    """Writes a run's metrics; a context manager.

    first_step: lines of later steps, left by a run that was killed, are dropped.
    """

    def __init__(self, run_dir: Path, first_step: int, steps: int):
        self._path = run_dir / "metrics.jsonl"
        self._drop_lines_after(first_step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(total=steps, initial=first_step, unit="step", desc="train", disable=None)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()

    def _drop_lines_after(self, step: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text().splitlines()
        kept = [line for line in lines if _is_at_most(line, step)]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._path)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Add a line and the TensorBoard scalars; show the training ones beside the bar."""
        self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        if split == "train":
            shown = {"loss": f"{metrics['loss']:.3f}"}
            if "images_per_s" in metrics:
                shown["images/s"] = f"{metrics['images_per_s']:.0f}"
                shown["waiting"] = f"{metrics['data_wait']:.0%}"
            self._bar.set_postfix(shown)
        if self._bar.disable or split == "val":
            self._bar.write(f"step {step} {split}: {_brief(metrics)}")

    def advance(self) -> None:
        """One step done."""
        self._bar.update()

    def pictures(self, step: int, images: Tensor) -> None:
        """Show network inputs, float [N, 3, H, W] normalised, a row per clip of five."""
        grid = make_grid(images[:40].float(), nrow=5, normalize=True)
        self._board.add_image("clips_as_they_enter_the_network", grid, step)


def _is_at_most(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError):  # the last line of a killed run may be cut short
        return False


def _brief(metrics: dict[str, float]) -> str:
    chosen = [
        k for k in metrics if k == "loss" or k.endswith(("/loss", "accuracy", "images_per_s"))
    ]
    return ", ".join(f"{key} {metrics[key]:.4g}" for key in chosen)


def to_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Fetch scalar tensors with a single transfer from the device."""
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def mean_of(batches: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over batches of equal size."""
    return {key: math.fsum(b[key] for b in batches) / len(batches) for key in batches[0]}
