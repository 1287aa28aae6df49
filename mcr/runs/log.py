"""The metrics log of a training run: metrics.jsonl, and the same values in TensorBoard.

Pre-training and behaviour cloning write it. metrics.jsonl holds one JSON object per line:
{"step" or "epoch": 100, "split": "train" or "val", "<metric>": 0.5, ...}. Each step (or epoch)
appears once per split, also after a resume. Weights & Biases receives the same values on request.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from mcr.errors import UserError, import_extra
from mcr.runs.atomic import write_text


class MetricsLog:
    """Writes the metrics of a run; a context manager.

    latest: the newest metrics that were written for each split
    """

    def __init__(
        self,
        run_dir: Path,
        counter: str,
        resumed_at: int,
        wandb_config: dict[str, Any] | None = None,
    ):
        """Open the log of the run in `run_dir`, which must exist.

        counter:      the key that orders the lines: "step" or "epoch"
        resumed_at:   steps (or epochs) that are done. Lines of later ones are deleted, because
                      the run that wrote them was killed and will compute them again. 0 = new run,
                      of which no line stays
        wandb_config: the config that Weights & Biases shows with the run; None = do not use it
        Raises UserError if Weights & Biases is asked for but is not installed or not logged in.
        """
        self.latest: dict[str, dict[str, float]] = {}
        self._counter = counter
        self._wandb = None if wandb_config is None else WandbRun(run_dir, counter, wandb_config)
        path = run_dir / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            write_text(path, "".join(f"{x}\n" for x in lines if self._is_done(x, resumed_at)))
        self._file = path.open("a")
        purged = resumed_at + 1 if resumed_at else 0
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purged)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._board.close()
        self._file.close()
        if self._wandb:
            self._wandb.finish(failed=kind is not None)

    def write(self, count: int, split: str, metrics: dict[str, float]) -> None:
        """Log `metrics` of the step (or epoch) `count`; split: "train" or "val"."""
        self.latest[split] = metrics
        self._file.write(json.dumps({self._counter: count, "split": split, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, count)
        if self._wandb:
            self._wandb.write(count, {f"{split}/{name}": value for name, value in metrics.items()})

    def pictures(self, count: int, figures: dict[str, np.ndarray]) -> None:
        """Log figures, uint8 [H, W, 3] by name."""
        for name, pixels in figures.items():
            self._board.add_image(f"pictures/{name}", pixels, count, dataformats="HWC")
        if self._wandb:
            self._wandb.pictures(count, figures)

    def _is_done(self, line: str, resumed_at: int) -> bool:
        try:
            return 0 < resumed_at >= json.loads(line)[self._counter]
        except (ValueError, KeyError):  # a killed run may have cut its last line short
            return False


class WandbRun:
    """The run in Weights & Biases; a resumed run continues the same one there.

    The environment variables of Weights & Biases apply: WANDB_PROJECT ("mcr" if unset),
    WANDB_ENTITY, and WANDB_MODE=offline, which needs neither network nor account.
    Raises UserError if the package is missing or nobody is logged in.
    """

    def __init__(self, run_dir: Path, counter: str, config: dict[str, Any]):
        self._package = import_extra("wandb", "wandb")
        self._counter = counter
        identity = run_dir / "wandb_id.txt"
        if not identity.exists():
            write_text(identity, secrets.token_hex(6))
        try:
            self._run = self._package.init(
                project=os.environ.get("WANDB_PROJECT", "mcr"),
                id=identity.read_text(),
                name=run_dir.name,
                dir=str(run_dir),
                config=config,
                resume="allow",
                settings=self._package.Settings(console="off"),  # it would break the progress bar
            )
        except self._package.errors.Error as error:
            raise UserError(f"wandb: {error}; log in, or set WANDB_MODE=offline") from error
        # A resumed run may go back a few steps, which Weights & Biases' own counter cannot.
        self._run.define_metric("*", step_metric=counter)

    def write(self, count: int, metrics: dict[str, float]) -> None:
        self._run.log({self._counter: count, **metrics})

    def pictures(self, count: int, figures: dict[str, np.ndarray]) -> None:
        images = {f"pictures/{n}": self._package.Image(pixels) for n, pixels in figures.items()}
        self.write(count, images)

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
