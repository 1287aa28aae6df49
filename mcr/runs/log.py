"""Logs of a run: metrics.jsonl always, TensorBoard beside it, one line of progress on the terminal.

metrics.jsonl: one JSON object per line, {"step": ..., "split": "train" | "val", "<metric>": ...};
each step appears once, also after a resume. Weights & Biases gets the same where it is asked for.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mcr.errors import UserError, import_extra
from mcr.runs.atomic import write_text


class RunLog:
    """Writes a run's metrics; a context manager.

    first_step:   lines of later steps, left by a run that was killed, are dropped.
    wandb_config: what Weights & Biases shall know of the run's config; None leaves it out
    """

    def __init__(
        self,
        run_dir: Path,
        first_step: int,
        steps: int,
        wandb_config: dict[str, Any] | None = None,
    ):
        self._wandb = None if wandb_config is None else WandbRun(run_dir, wandb_config)
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
        if self._wandb:
            self._wandb.finish(failed=kind is not None)

    def _drop_lines_after(self, step: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text().splitlines()
        kept = [line for line in lines if _is_at_most(line, step)]
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Add a line and the TensorBoard scalars; show the training ones beside the bar."""
        self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        if self._wandb:
            self._wandb.write(step, {f"{split}/{name}": value for name, value in metrics.items()})
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

    def pictures(self, step: int, figures: dict[str, np.ndarray]) -> None:
        """Show figures, uint8 [H, W, 3] by name."""
        for name, pixels in figures.items():
            self._board.add_image(f"pictures/{name}", pixels, step, dataformats="HWC")
        if self._wandb:
            self._wandb.pictures(step, figures)


class WandbRun:
    """The run's copy in Weights & Biases, continued when the run is.

    Its own environment variables say where it goes: WANDB_PROJECT ("mcr" if unset), WANDB_ENTITY,
    and WANDB_MODE=offline, which needs no network and no account.
    Raises UserError if the package is missing or nobody is logged in.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any]):
        self._package = import_extra("wandb", "wandb")
        identity = run_dir / "wandb_id.txt"
        if not identity.exists():
            identity.write_text(secrets.token_hex(6))
        try:
            self._run = self._package.init(
                project=os.environ.get("WANDB_PROJECT", "mcr"),
                id=identity.read_text(),
                name=run_dir.name,
                dir=str(run_dir),
                config=config,
                resume="allow",
                settings=self._package.Settings(console="off"),  # the progress bar stays as it is
            )
        except self._package.errors.Error as error:
            raise UserError(f"wandb: {error}; log in, or set WANDB_MODE=offline") from error
        self._run.define_metric("*", step_metric="step")  # a resumed run may go back a few steps

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def pictures(self, step: int, figures: dict[str, np.ndarray]) -> None:
        images = {f"pictures/{n}": self._package.Image(pixels) for n, pixels in figures.items()}
        self._run.log({"step": step, **images})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


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
