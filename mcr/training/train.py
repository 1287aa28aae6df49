"""The training run: one readable loop around the Pretrainer.

    python -m mcr.training.train --config-name mcr data.root=/data/droid/1.0.1

The order of a start: 1. data is opened, 2. the model is built from the seed, 3. config and versions
are saved (bad input leaves nothing behind), 4. the newest checkpoint, if there is one, replaces
weights, optimiser, step and random state. After that, step s trains on the samples from number
s * batch_size on, whatever happened before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

import mcr
from mcr.data.batch import Batch
from mcr.data.crops import network_input
from mcr.data.index import Index, open_index
from mcr.data.loader import ClipDataset, ClipLoader
from mcr.data.sampling import VALIDATION
from mcr.data.selection import select_episodes, split_sessions
from mcr.errors import UserError, plain_errors, require_choice
from mcr.models.preprocessing import Preprocessing
from mcr.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    restore_rng_state,
    rng_state,
    save_checkpoint,
)
from mcr.training.config import Config, check_overrides, config_difference, recipes_folder
from mcr.training.logging import RunLog, mean_of, to_numbers
from mcr.training.pretrainer import Pretrainer, embedding_health


class NonFinite(UserError):
    """A loss or gradient is not finite; raised before it could reach the weights."""


def train(config: Config) -> Path:
    """Run, or continue, the training that `config` describes. Returns the last checkpoint's path.

    Raises UserError for anything wrong with config, data or checkpoints, before or during the run.
    """
    run = Run(config)
    with RunLog(run.folder, run.step, config.steps) as log:
        run.loop(log)
    path = run.save()
    print(f"checkpoint: {path}")
    return path


class Run:
    """One run's state: data, model, optimiser, step."""

    def __init__(self, config: Config):
        _check(config)
        self.config = config
        self.folder = Path(config.run_dir)
        self.device = _device(config.device)
        self.stopped_by_signal = False
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        if checkpoints and config.resume == "never":
            raise UserError(f"{self.folder}: holds a run; choose another run_dir or resume=auto")
        checkpoint = load_checkpoint(checkpoints[-1]) if checkpoints else None
        if checkpoint:
            self._check_unchanged(checkpoint)
        self._open_data()
        self._build()
        self._save_description()
        self.step = 0
        if checkpoint:
            self._restore(checkpoint, checkpoints[-1])

    # --- building

    def _save_description(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = OmegaConf.to_yaml(OmegaConf.structured(self.config))
        (self.folder / "config.yaml").write_text(text)
        (self.folder / "versions.json").write_text(json.dumps(_versions(), indent=1))

    def _open_data(self) -> None:
        config = self.config
        self.index = open_index(config.data.root, config.data.index or None)
        rows, report = select_episodes(self.index, config.data.selection)
        train_rows, val_rows = split_sessions(self.index, rows, config.data.selection.val_fraction)
        print(f"data: {self.index.source} ({self.index.kind})")
        for line in report:
            print(f"  {line}")
        print(f"  {len(train_rows)} episodes to train on, {len(val_rows)} held out by session")
        self.num_train_episodes = len(train_rows)
        self.train_set = ClipDataset(self.index, train_rows, config.data, config.seed)
        self.val_loader: ClipLoader | None = None
        if len(val_rows) and config.val_clips:
            # drawn as in training, so that losses compare; the same clips every time, and read in
            # this process, because validation is rare and short
            val_config = dataclasses.replace(config.data, workers=0)
            val_set = ClipDataset(self.index, val_rows, val_config, config.seed, VALIDATION)
            self.val_loader = ClipLoader(
                val_set, val_config, config.batch_size, num_samples=config.val_clips
            )

    def _build(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        self.statistics = _statistics(self.index, config) if config.normalise_signals else None
        self.model = Pretrainer(
            backbone=config.model.backbone,
            preprocessing=Preprocessing.for_size(config.model.image_size),
            objectives=config.objectives,
            loss_weights=config.loss_weights,
            dimensions=self.train_set.dimensions,
            statistics=self.statistics,
            frozen_bn=config.model.frozen_bn,
        )
        self.model.to(self.device).to(memory_format=torch.channels_last)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            trainable,
            lr=config.optimizer.lr,
            weight_decay=config.optimizer.weight_decay,
            fused=self.device.type == "cuda",
        )
        wants_bf16 = config.precision == "bf16"
        if config.precision == "auto":
            wants_bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=wants_bf16)

    # --- stopping and going on

    def _check_unchanged(self, checkpoint: dict[str, Any]) -> None:
        difference = config_difference(checkpoint["config"], dataclasses.asdict(self.config))
        if difference and not self.config.allow_config_change:
            shown = "".join(f"\n  {line}" for line in difference)
            raise UserError(
                f"{self.folder} was begun with another config:{shown}\n"
                "choose another run_dir, or set allow_config_change=true to go on regardless"
            )

    def _restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        if checkpoint["dataset"]["fingerprint"] != self.index.fingerprint:
            raise UserError(
                f"{path} was trained on other data (fingerprint "
                f"{checkpoint['dataset']['fingerprint'][:12]}, {self.index.source} has "
                f"{self.index.fingerprint[:12]}); choose another run_dir"
            )
        self.model.encoder.load_state_dict(checkpoint["encoder"])
        self.model.objectives.load_state_dict(checkpoint["objectives"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step = checkpoint["step"]
        restore_rng_state(checkpoint["rng"])
        print(f"resumed from {path} at step {self.step}")

    def save(self) -> Path:
        """Write a checkpoint of the current step (again if there is one: it is the same)."""
        model = self.model
        content = {
            "encoder": model.encoder.state_dict(),
            "encoder_config": model.preprocessing.encoder_config(self.config.model.backbone),
            "objectives": model.objectives.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng_state(),
            "config": dataclasses.asdict(self.config),
            "statistics": self.statistics or {},
            "dataset": {
                "name": self.index.source.name,
                "fingerprint": self.index.fingerprint,
                "episodes": self.num_train_episodes,
            },
            "versions": _versions(),
        }
        folder = self.folder / "checkpoints"
        return save_checkpoint(folder, self.step, content, self.config.keep_checkpoints)

    def _stop_on_sigterm(self) -> None:
        def stop(signum: int, frame: object) -> None:
            self.stopped_by_signal = True

        signal.signal(signal.SIGTERM, stop)

    # --- the loop

    def loop(self, log: RunLog) -> None:
        """Train up to `config.steps`, or until SIGTERM."""
        config = self.config
        self._stop_on_sigterm()
        if self.step >= config.steps:
            print(f"nothing to do: {self.folder} is at step {self.step} of {config.steps}")
            return
        loader = ClipLoader(
            self.train_set,
            config.data,
            config.batch_size,
            first_sample=self.step * config.batch_size,
            pin_memory=self.device.type == "cuda",
        )
        if self.step == 0:
            self.validate(log)
        meter = Meter()
        batches = iter(loader)
        while self.step < config.steps and not self.stopped_by_signal:
            with meter.waiting():
                batch = next(batches).to(self.device)
            if self.step == 0:
                self._show_pictures(log, batch)
            metrics, embeddings = self._train_step(batch)
            self.step += 1
            meter.count(embeddings.shape[0] * embeddings.shape[1])
            log.advance()
            if self.step % config.log_every == 0 or self.step == config.steps:
                numbers = to_numbers(metrics | embedding_health(embeddings))
                skipped = {"skipped_samples": float(loader.num_errors)}
                log.write(self.step, "train", numbers | meter.read() | skipped)
            if self.step % config.validate_every == 0 or self.step == config.steps:
                self.validate(log)
                meter.reset()
            if self.step % config.save_every == 0:
                self.save()
                meter.reset()
        if self.stopped_by_signal:
            print(f"stopped by SIGTERM after step {self.step}; the same command goes on from there")

    def _train_step(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        self.model.train()
        with self.autocast:
            loss, metrics, embeddings = self.model(batch)
        self._require_finite(loss, "loss", batch, metrics)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._require_finite(norm, "gradient norm", batch, metrics)
        self.optimizer.step()
        metrics = {"loss": loss.detach(), "gradient_norm": norm, **metrics}
        return metrics, embeddings.detach()

    def _require_finite(
        self, value: torch.Tensor, what: str, batch: Batch, metrics: dict[str, torch.Tensor]
    ) -> None:
        if torch.isfinite(value):
            return
        parts = {name: v for name, v in to_numbers(metrics).items() if name.endswith("/loss")}
        report = {
            "step": self.step,
            "what": what,
            "losses": {name: str(v) for name, v in parts.items()},
            "samples": batch.samples.tolist(),
            "clips_with_non_finite_signals": _non_finite_clips(batch),
        }
        path = self.folder / "non_finite.json"
        path.write_text(json.dumps(report, indent=1))
        raise NonFinite(
            f"the {what} at step {self.step} is {value.item()} ({parts}); the weights are as they "
            f"were before it; samples {batch.samples[0]}..{batch.samples[-1]}, clips with "
            f"non-finite signals: {report['clips_with_non_finite_signals']}; see {path}"
        )

    @torch.no_grad()
    def validate(self, log: RunLog) -> None:
        """Log the metrics of the held-out clips; leaves the random state of training alone."""
        if self.val_loader is None:
            return
        self.model.eval()
        devices = [self.device] if self.device.type == "cuda" else []
        results = []
        with torch.random.fork_rng(devices), self.autocast:
            torch.manual_seed(self.config.seed)
            for batch in self.val_loader:
                loss, metrics, embeddings = self.model(batch.to(self.device))
                health = embedding_health(embeddings)
                results.append(to_numbers({"loss": loss, **metrics, **health}))
        log.write(self.step, "val", mean_of(results))

    def _show_pictures(self, log: RunLog, batch: Batch) -> None:
        p = self.model.preprocessing
        frames, crops = batch.frames[:8], batch.crops[:8]
        log.pictures(0, network_input(frames, crops, p.image_size, p.mean, p.std))


class Meter:
    """Images per second, and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside counts as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def count(self, images: int) -> None:
        self._images += images

    def read(self) -> dict[str, float]:
        """{"images_per_s", "data_wait"}; starts anew."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        result = {"images_per_s": self._images / elapsed, "data_wait": self._waited / elapsed}
        self.reset()
        return result


# --------------------------------------------------------------------------- details


def _check(config: Config) -> None:
    require_choice("resume", config.resume, ("auto", "never"))
    require_choice("precision", config.precision, ("auto", "fp32", "bf16"))
    if not config.data.root:
        raise UserError("data.root is not set: give the RLDS version folder or a tree's root")
    for name in ("steps", "batch_size", "log_every", "validate_every", "save_every"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} must be at least 1")
    if config.keep_checkpoints < 1:
        raise UserError(f"keep_checkpoints={config.keep_checkpoints} must be at least 1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training with several processes is not supported yet; start one")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _statistics(index: Index, config: Config) -> dict[str, dict[str, list[float]]]:
    keys = {"state": tuple(config.data.state_keys), "action": (config.data.action_key,)}
    return {name: index.statistics(signal_keys) for name, signal_keys in keys.items()}


def _non_finite_clips(batch: Batch) -> list[int]:
    """Sample numbers of the clips whose states or actions are not finite."""
    signals = (batch.actions, batch.window_states, batch.window_actions)
    finite = torch.stack([s.flatten(1).isfinite().all(1) for s in signals]).all(0)
    return batch.samples[~finite].tolist()


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "numpy")
    return {
        "mcr": mcr.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


# --------------------------------------------------------------------------- command line


def main() -> None:
    """`python -m mcr.training.train`, `scripts/train_mcr.sh`."""
    store = ConfigStore.instance()
    store.store(name="config", node=Config)
    with plain_errors():
        check_overrides(sys.argv[1:])
    hydra.main(version_base="1.3", config_path=str(recipes_folder()), config_name="mcr")(_main)()


def _main(options: DictConfig) -> None:
    config = OmegaConf.to_object(options)
    assert isinstance(config, Config)
    with plain_errors():
        train(config)


if __name__ == "__main__":
    main()
