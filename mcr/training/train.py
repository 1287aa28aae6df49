"""The training run: one readable loop around the engine's step.

    python -m mcr.training.train --config-name mcr data.root=/data/droid/1.0.1
    torchrun --nproc-per-node 8 -m mcr.training.train data.root=/data/droid/1.0.1

The order of a start: 1. data is opened, 2. the model is built from the seed, 3. config and versions
are saved (bad input leaves nothing behind), 4. the newest checkpoint, if there is one, replaces
weights, optimiser and step. After that, step s trains on the samples from number s * batch_size on
and draws what it draws at random from (seed, s), whatever happened before and however many
processes there are. All of them run this file; rank 0 writes and talks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import signal
import sys
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

import mcr
from mcr.data.batch import NUM_FRAMES
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader
from mcr.data.sampling import VALIDATION
from mcr.data.selection import select_episodes, split_sessions
from mcr.data.statistics import space_statistics
from mcr.errors import UserError, require_choice
from mcr.models.preprocessing import Preprocessing
from mcr.runs.devices import choose_device
from mcr.runs.hydra_command import hydra_command
from mcr.runs.options import RESUME, check_resume, require_same_config
from mcr.training.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from mcr.training.config import RENAMED, Config, free_to_change
from mcr.training.distributed import World
from mcr.training.engine import (
    PRECISIONS,
    Engine,
    Step,
    compile_mode,
    make_deterministic,
    on_device,
)
from mcr.training.pictures import Painter
from mcr.training.pretrainer import Pretrainer, embedding_gradients, embedding_health
from mcr.training.progress import Meter, TrainingLog, mean_of, to_numbers
from mcr.training.summary import hardware, save_launch, write_summary
from mcr.training.watch import NonFinite, Verdict, Watch, report_non_finite


def train(config: Config) -> Path:
    """Run, or continue, the training that `config` describes. Returns the last checkpoint's path.

    Raises UserError for anything wrong with config, data or checkpoints, before or during the run.
    """
    world = World.of_environment()
    _check(config, world)
    device = choose_device(config.device, world.local_rank if world.size > 1 else None)
    make_deterministic(config.deterministic)
    with world.connected(device):
        run = Run(config, world, device)
        with run.open_log() as log:
            run.loop(log)
        path = run.save()
    if world.is_main:
        print(f"checkpoint: {path}\nsummary: {write_summary(run.folder)}")
    return path


class Run:
    """One run's state: data, model, optimiser, step."""

    def __init__(self, config: Config, world: World, device: torch.device):
        self.config, self.world, self.device = config, world, device
        self.folder = Path(config.run_dir)
        self.part_size = config.batch_size // config.engine.accumulate
        self.stopped_by_signal = False
        self.step = 0
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        newest = world.of_main(checkpoints[-1] if checkpoints else None)
        check_resume(self.folder, config.resume, newest is not None)
        checkpoint = load_checkpoint(newest) if newest else None
        if checkpoint:
            self._check_unchanged(checkpoint)
        self._open_data()
        self._build()
        if world.is_main:
            self._save_description()
        if checkpoint and newest:
            self._restore(checkpoint, newest)

    def open_log(self) -> contextlib.AbstractContextManager[TrainingLog | None]:
        """The run's log on rank 0, None on the others."""
        if not self.world.is_main:
            return contextlib.nullcontext()
        wandb_config = dataclasses.asdict(self.config) if self.config.log_wandb else None
        return TrainingLog(self.folder, self.step, self.config.steps, wandb_config)

    # --- building

    def _save_description(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = OmegaConf.to_yaml(OmegaConf.structured(self.config))
        (self.folder / "config.yaml").write_text(text)
        where = {"processes": self.world.size, "device": hardware(self.device)}
        (self.folder / "versions.json").write_text(json.dumps(_versions() | where, indent=1))
        (self.folder / "dataset.json").write_text(json.dumps(self._dataset(), indent=1))
        save_launch(self.folder, self.data_report)

    def _dataset(self) -> dict[str, Any]:
        return {
            "name": self.index.source.name,
            "fingerprint": self.index.fingerprint,
            "episodes": self.num_train_episodes,
        }

    def _open_data(self) -> None:
        config = self.config
        self.index = self.world.in_turn(
            lambda: open_index(config.data.root, config.data.index or None)
        )
        selection = config.data.selection
        episodes, report = select_episodes(self.index, selection)
        training, held_out = split_sessions(self.index, episodes, selection.val_fraction)
        parts = f"{len(training)} episodes to train on, {len(held_out)} held out by session"
        self.data_report = [f"{self.index.source} ({self.index.kind})", *report, parts]
        self.world.say("data: " + "\n  ".join(self.data_report))
        self.shown = held_out if len(held_out) else training
        self.num_train_episodes = len(training)
        self.train_set = ClipDataset(self.index, training, config.data, config.seed)
        self.val_loader: ClipLoader | None = None
        if len(held_out) and config.val_clips:
            # drawn as in training, so that losses compare; the same clips every time, and read in
            # this process, because validation is rare and short
            val_config = dataclasses.replace(config.data, workers=0)
            val_set = ClipDataset(self.index, held_out, val_config, config.seed, VALIDATION)
            self.val_loader = ClipLoader(
                val_set,
                val_config,
                self.part_size,
                num_samples=config.val_clips,
                rank=self.world.rank,
                world_size=self.world.size,
            )

    def _build(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        self.statistics = None
        if config.normalise_signals:
            self.statistics = self.world.in_turn(self._statistics)
        self.model = Pretrainer(
            backbone=config.model.backbone,
            preprocessing=Preprocessing.for_size(config.model.image_size),
            objectives=config.objectives,
            loss_weights=config.loss_weights,
            dimensions=self.train_set.dimensions,
            statistics=self.statistics,
            frozen_bn=config.model.frozen_bn,
            ghost_batch=config.model.ghost_batch,
        )
        mode = compile_mode(
            config.engine, self.device, self.world, config.steps, self.part_size // self.world.size
        )
        self.engine = Engine(
            self.model,
            dataclasses.replace(config.engine, compile=mode),
            config.optimizer,
            config.precision,
            self.device,
            self.world,
        )

    def _statistics(self) -> dict[str, dict[str, list[float]]]:
        spaces = {"state": self.train_set.state_space, "action": self.train_set.action_space}
        return {name: space_statistics(self.index, space) for name, space in spaces.items()}

    # --- stopping and going on

    def _check_unchanged(self, checkpoint: dict[str, Any]) -> None:
        if not self.config.allow_config_change:
            require_same_config(
                self.folder,
                checkpoint["config"],
                dataclasses.asdict(self.config),
                free_to_change(self.config),
                RENAMED,
                "choose another run_dir, or set allow_config_change=true to go on regardless",
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
        self.engine.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step = checkpoint["step"]
        self.world.say(f"resumed from {path} at step {self.step}")

    def save(self) -> Path:
        """Write a checkpoint of the current step (again if there is one: it is the same)."""
        folder = self.folder / "checkpoints"
        if not self.world.is_main:
            return checkpoint_path(folder, self.step)
        model = self.model
        content = {
            "encoder": model.encoder.state_dict(),
            "encoder_config": model.preprocessing.encoder_config(self.config.model.backbone),
            "objectives": model.objectives.state_dict(),
            "optimizer": self.engine.optimizer.state_dict(),
            "config": dataclasses.asdict(self.config),
            "statistics": self.statistics or {},
            "dataset": self._dataset(),
            "versions": _versions(),
        }
        return save_checkpoint(folder, self.step, content, self.config.keep_checkpoints)

    def _stop_on_sigterm(self) -> None:
        def stop(signum: int, frame: object) -> None:
            self.stopped_by_signal = True

        signal.signal(signal.SIGTERM, stop)

    # --- the loop

    def loop(self, log: TrainingLog | None) -> None:
        """Train up to `config.steps`, or until SIGTERM to any process."""
        config = self.config
        self._stop_on_sigterm()
        if self.step >= config.steps:
            self.world.say(f"nothing to do: {self.folder} is at step {self.step} of {config.steps}")
            return
        if self.step == 0:
            self.validate(log)
            self.draw(log)
        loader = self._loader()
        meter, watch = Meter(), Watch(self.device)
        parts = meter.waiting_for(on_device(loader, self.device))
        stopping = False
        while self.step < config.steps and not stopping:
            seed_draws(config.seed, self.step)
            self.engine.set_rate(config.optimizer.rate(self.step, config.steps))
            step = self.engine.step(islice(parts, config.engine.accumulate), self.stopped_by_signal)
            watch.add(self.step, step)
            self.step += 1
            meter.count(config.batch_size * NUM_FRAMES)
            if log:
                log.advance()
            logs, validates = self._is_due(config.log_every), self._is_due(config.validate_every)
            saves = self.step % config.save_every == 0
            draws = config.pictures_every > 0 and self.step % config.pictures_every == 0
            stopping = self._judge(watch, all_steps=logs or validates or saves)
            if logs:
                self._log_training(log, step, meter, loader)
            if validates:
                self.validate(log)
            if draws:
                self.draw(log)
            if saves:
                self.save()
            if validates or draws or saves:
                meter.reset()
        self._judge(watch, all_steps=True)
        if stopping:
            self.world.say(
                f"stopped by SIGTERM after step {self.step}; the same command goes on from there"
            )

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _loader(self) -> ClipLoader:
        return ClipLoader(
            self.train_set,
            self.config.data,
            self.part_size,
            first_sample=self.step * self.config.batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            pin_memory=self.device.type == "cuda",
        )

    def _judge(self, watch: Watch, all_steps: bool) -> bool:
        """Whether a process was asked to stop; raises NonFinite if a step went wrong."""
        verdicts = watch.verdicts(all_steps)
        for verdict in verdicts:
            if verdict.bad_loss or verdict.bad_gradient:
                losses = to_numbers(self.world.mean(verdict.losses))
                raise NonFinite(self.world.of_main(self._report(verdict, losses)))
        return any(verdict.wants_to_stop for verdict in verdicts)

    def _report(self, verdict: Verdict, losses: dict[str, float]) -> str:
        """Write down which samples a step that went wrong was computed from; rank 0 only."""
        if not self.world.is_main:
            return ""
        first = verdict.number * self.config.batch_size
        batch = self.train_set.load(list(range(first, first + self.config.batch_size))).batch
        assert batch is not None  # it has been read before
        return report_non_finite(self.folder / "non_finite.json", verdict, losses, batch)

    def _log_training(
        self, log: TrainingLog | None, step: Step, meter: Meter, loader: ClipLoader
    ) -> None:
        skipped = torch.full((), float(loader.num_errors * self.world.size), device=self.device)
        gradients = embedding_gradients(self.model, step.embeddings, step.batch)
        metrics = self.world.mean(step.metrics | gradients | {"skipped_samples": skipped})
        metrics |= embedding_health(step.embeddings)
        if log:
            rate = {"learning_rate": self.engine.optimizer.param_groups[0]["lr"]}
            log.write(self.step, "train", to_numbers(metrics) | rate | meter.read())

    def validate(self, log: TrainingLog | None) -> None:
        """Log the metrics of the held-out clips; they are the same for any number of processes."""
        if self.val_loader is None:
            return
        torch.manual_seed(self.config.seed)  # training seeds each of its steps
        results = []
        for batch in on_device(self.val_loader, self.device):
            metrics, embeddings = self.engine.evaluate(batch)
            results.append(to_numbers(self.world.mean(metrics) | embedding_health(embeddings)))
        if log:
            log.write(self.step, "val", mean_of(results))

    def draw(self, log: TrainingLog | None) -> None:
        """Draw the pictures of this step; rank 0 does, and the run is as it was."""
        if log and self.config.pictures_every > 0:
            log.pictures(self.step, self.painter.draw(self.model, self.step))

    @cached_property
    def painter(self) -> Painter:
        return Painter(
            self.folder / "pictures", self.index, self.shown, self.config.data, self.config.seed
        )


# --------------------------------------------------------------------------- details


def seed_draws(seed: int, step: int) -> None:
    """Make what a step draws a function of (seed, step), the same on all processes."""
    high, low = np.random.SeedSequence((seed, step)).generate_state(2).tolist()
    torch.manual_seed(high << 32 | low)


def _check(config: Config, world: World) -> None:
    require_choice("resume", config.resume, RESUME)
    require_choice("precision", config.precision, PRECISIONS)
    if not config.data.root:
        raise UserError("data.root is not set: give the RLDS version folder or a tree's root")
    for name in ("steps", "batch_size", "log_every", "validate_every", "save_every"):
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} must be at least 1")
    if config.keep_checkpoints < 1:
        raise UserError(f"keep_checkpoints={config.keep_checkpoints} must be at least 1")
    pieces = config.engine.accumulate * world.size
    if config.batch_size % pieces:
        raise UserError(
            f"batch_size={config.batch_size} clips do not divide by {world.size} processes "
            f"times engine.accumulate={config.engine.accumulate}"
        )
    _check_ghost_batch(config, config.batch_size // pieces)


def _check_ghost_batch(config: Config, share: int) -> None:
    """share: clips that one process computes at a time"""
    ghost, contrast = config.model.ghost_batch, config.objectives.time_contrastive
    if ghost == 0:
        return
    if ghost < 0 or share % ghost:
        raise UserError(
            f"model.ghost_batch={ghost} must divide the {share} clips that a process has at a time"
        )
    is_on = config.loss_weights.get("time_contrastive", 0) > 0 and contrast.num_negatives > 0
    if is_on and (contrast.group == 0 or ghost % contrast.group):
        raise UserError(
            f"model.ghost_batch={ghost} with negatives from other ghost batches would let the "
            "network tell them by their batch statistics; "
            f"set objectives.time_contrastive.group={ghost}"
        )


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
    hydra_command(_train_or_stop, Config, schema="config", recipe="mcr", renamed=RENAMED)


def _train_or_stop(config: Config) -> None:
    path = train(config)
    if path.name < checkpoint_path(path.parent, config.steps).name:
        sys.exit(0)  # what stopped this run stops a sweep, too


if __name__ == "__main__":
    main()
