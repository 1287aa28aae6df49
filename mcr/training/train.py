"""The pre-training run: one loop around the engine's step.

    python -m mcr.training.train --config-name mcr data.root=/data/droid/1.0.1
    torchrun --nproc-per-node 8 -m mcr.training.train data.root=/data/droid/1.0.1

A run starts in this order:

1. It reads the weights of `model.init` and the teacher's, because indexing the data may take hours.
2. It opens the data and builds the network.
3. It saves config and versions. Bad input is refused before, so that it leaves nothing behind.
4. It restores weights, optimiser and step from the newest checkpoint, if there is one.

Step s then trains on the samples from number s * batch_size on, and every random number that it
draws is a function of (seed, s). Interruptions and the number of processes change neither. All
processes of a run execute this file; rank 0 alone writes and prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcr.data.batch import UNNAMED
from mcr.data.loader import MixtureLoader
from mcr.data.loader_faults import worker_errors
from mcr.errors import UserError
from mcr.models.encoder import Encoder
from mcr.models.fingerprint import encoder_fingerprint
from mcr.models.layouts import Weights
from mcr.models.loading import fill, load_model
from mcr.models.preprocessing import Preprocessing
from mcr.models.trainable import read_start, usual_preprocessing
from mcr.runs.atomic import remove_all_leftovers
from mcr.runs.devices import choose_device
from mcr.runs.hydra_command import HydraCommand
from mcr.runs.locks import exclusive_folder
from mcr.runs.options import check_resume, require_same_config
from mcr.training.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_fitting,
    save_checkpoint,
)
from mcr.training.config import (
    RENAMED,
    Config,
    ModelConfig,
    check_config,
    default_values,
    free_to_change,
)
from mcr.training.distributed import World
from mcr.training.engine import Engine, Step, compile_mode, make_deterministic, on_device
from mcr.training.monitor import NonFinite, StepMonitor, StepStatus, report_non_finite
from mcr.training.pictures import Painter
from mcr.training.pretrainer import Pretrainer, embedding_gradients, embedding_health
from mcr.training.progress import Meter, TrainingLog, mean_of, to_numbers
from mcr.training.run_folder import hardware, save_description, versions
from mcr.training.summary import write_summary
from mcr.training.training_data import TrainingData
from mcr.training.training_set import TrainingSet, places_to_read


def train(config: Config) -> Path:
    """Run, or continue, the training that `config` describes. Returns the last checkpoint's path.

    Raises UserError for anything wrong with config, data or checkpoints, before or during the run.
    """
    world = World.of_environment()
    check_config(config, world.size)
    device = choose_device(config.device, world.local_rank if world.size > 1 else None)
    make_deterministic(config.deterministic)
    with world.connected(device), _alone(Path(config.run_dir), world):
        run = Run(config, world, device)
        with run.open_log() as log, worker_errors():
            run.loop(log)
        path = run.save()
    if world.is_main:
        print(f"checkpoint: {path}\nsummary: {write_summary(run.folder)}")
    return path


@contextlib.contextmanager
def _alone(folder: Path, world: World) -> Iterator[None]:
    """Keep other runs out of a run's folder, and delete what a killed one has left half written.

    All processes raise the UserError of rank 0, which holds the lock.
    """
    with contextlib.ExitStack() as stack:
        lock = exclusive_folder(folder, "choose another run_dir")
        world.in_turn(lambda: stack.enter_context(lock) if world.is_main else None)
        if world.is_main:
            for place in (folder, folder / "checkpoints"):
                remove_all_leftovers(place)
        yield


class Run:
    """The state of one run: its data, and the network, optimiser and step that change."""

    def __init__(self, config: Config, world: World, device: torch.device):
        self.config, self.world, self.device = config, world, device
        self.folder = Path(config.run_dir)
        self.step = 0
        self.stopped_by_signal = False
        self._teacher_fingerprint = ""
        self._painters: list[Painter] = []  # opened when they first draw
        is_new = world.of_main(not list_checkpoints(self.folder / "checkpoints"))
        start = self._read_start() if is_new else None
        teacher = self._load_teacher()
        self.data = TrainingData(config, world)
        config = dataclasses.replace(config, data=self.data.config)
        self.config = dataclasses.replace(self.config, data=self.data.config)
        checkpoint = self._newest_checkpoint()
        if checkpoint:
            self.data.require_same(checkpoint["dataset"], str(self.folder))
            self._require_same_teacher(checkpoint)
        self.model = self._build_model(checkpoint, start, teacher)
        self.engine = self._build_engine()
        if world.is_main:
            where = {"processes": world.size, "device": hardware(device)}
            save_description(self.folder, config, self.data.identity(), self.data.report, where)
        if checkpoint:
            self._restore(checkpoint)

    def open_log(self) -> contextlib.AbstractContextManager[TrainingLog | None]:
        """Open the log of the run on rank 0; the other processes get None."""
        if not self.world.is_main:
            return contextlib.nullcontext()
        wandb_config = dataclasses.asdict(self.config) if self.config.log_wandb else None
        return TrainingLog(self.folder, self.step, self.config.steps, wandb_config)

    # --- building

    def _build_model(
        self, checkpoint: dict[str, Any] | None, start: Weights | None, teacher: Encoder | None
    ) -> Pretrainer:
        """Build the network from the seed, or from the weights of `model.init`, `start`.

        A run that is resumed does not read `model.init` again, and has no `start`.
        """
        config = self.config
        torch.manual_seed(config.seed)
        model = Pretrainer(
            backbone=config.model.backbone,
            preprocessing=self._preprocessing(start, checkpoint),
            objectives=config.objectives,
            loss_weights=config.loss_weights,
            dimensions=self.data.dimensions,
            statistics=self.data.statistics,
            frozen_bn=config.model.frozen_bn,
            ghost_batch=config.model.ghost_batch,
            teacher=teacher,
            places=places_to_read(config),
            balance_losses=config.balance_losses,
        )
        if start:
            fill(model.encoder, start)
        return model

    def _read_start(self) -> Weights | None:
        """Read the weights of `model.init`, and train their network if no other is asked for."""
        model = self.config.model
        if not model.init:
            return None
        asked = model.backbone if model.backbone != ModelConfig.backbone else None
        start = self.world.in_turn(lambda: read_start(model.init, asked, model.image_size))
        self._take_backbone(start.backbone)
        text = f"{start.layout}, {start.backbone}, {start.preprocessing.image_size} px"
        self.world.say(f"starting from {model.init} ({text})")
        return start

    def _load_teacher(self) -> Encoder | None:
        """Load the teacher, if distillation is on."""
        source = self.config.objectives.distillation.teacher
        if not source or not self.config.loss_weights.get("distillation", 0):
            return None
        try:
            teacher = self.world.in_turn(lambda: load_model(source))
        except UserError as error:
            raise UserError(f"objectives.distillation.teacher={source}: {error}") from error
        self._teacher_fingerprint = encoder_fingerprint(teacher)
        return teacher

    def _require_same_teacher(self, checkpoint: dict[str, Any]) -> None:
        """Raise UserError unless the run keeps the teacher that it began with."""
        own = self._teacher_fingerprint
        known = checkpoint.get("teacher", own)
        if own and known != own:
            raise UserError(
                f"objectives.distillation.teacher={self.config.objectives.distillation.teacher}: "
                f"{self.folder} was begun with another teacher (fingerprint {known[:12]}, this one "
                f"has {own[:12]}); give that one, or choose another run_dir"
            )

    def _take_backbone(self, backbone: str) -> None:
        """Name the network of `model.init` in the config, unless it names one itself."""
        model = self.config.model
        if model.init and model.backbone == ModelConfig.backbone:
            model = dataclasses.replace(model, backbone=backbone)
            self.config = dataclasses.replace(self.config, model=model)

    def _preprocessing(
        self, start: Weights | None, checkpoint: dict[str, Any] | None
    ) -> Preprocessing:
        model = self.config.model
        if checkpoint:
            _, preprocessing = Preprocessing.from_config(checkpoint["encoder_config"])
            return preprocessing.resized(model.image_size)
        return (
            start.preprocessing if start else usual_preprocessing(model.backbone, model.image_size)
        )

    def _build_engine(self) -> Engine:
        config = self.config
        num_clips = config.batch_size // config.engine.accumulate // self.world.size
        mode = compile_mode(config.engine, self.device, self.world, config.steps, num_clips)
        return Engine(
            self.model,
            dataclasses.replace(config.engine, compile=mode),
            config.optimizer,
            config.precision,
            self.device,
            self.world,
            config.model.ema,
        )

    # --- stopping and resuming

    def _newest_checkpoint(self) -> dict[str, Any] | None:
        """Load the checkpoint to continue from. Returns None for a new run.

        Raises UserError if the run may not be continued, or was begun with another config.
        """
        paths = list_checkpoints(self.folder / "checkpoints")
        newest = self.world.of_main(paths[-1] if paths else None)
        check_resume(self.folder, self.config.resume, is_used=newest is not None)
        if newest is None:
            return None
        checkpoint = load_checkpoint(newest)
        self._take_backbone(checkpoint["encoder_config"]["backbone"])
        if not self.config.allow_config_change:
            self._require_same_data_sets(checkpoint)
            require_same_config(
                self.folder,
                checkpoint["config"],
                dataclasses.asdict(self.config),
                free_to_change(self.config),
                RENAMED,
                "choose another run_dir, or set allow_config_change=true to go on regardless",
                default_values(self.config),
            )
        return checkpoint

    def _require_same_data_sets(self, checkpoint: dict[str, Any]) -> None:
        """Raise UserError if the run has other data sets than when it wrote `checkpoint`."""
        old, new = checkpoint["config"]["data"].get("mix") or {}, self.config.data.mix
        if {*old} != {*new}:
            before, now = (", ".join(sorted(mix)) or "one data.root" for mix in (old, new))
            raise UserError(
                f"{self.folder} was begun with the data sets {before}; now there are {now}. Choose "
                "another run_dir, or set allow_config_change=true to go on with its encoder and "
                "with the heads of the data sets that stay"
            )

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.model.encoder.load_state_dict(checkpoint["encoder"])
        if self.config.allow_config_change and "parameter_names" in checkpoint:
            new = load_fitting(self.model.objectives, checkpoint["objectives"])
            self.engine.load_optimizer(checkpoint["optimizer"], checkpoint["parameter_names"])
            if new:
                self.world.say(f"begin anew: {', '.join(new)}")
        else:
            self.model.objectives.load_state_dict(checkpoint["objectives"])
            self.model.balances.load_state_dict(checkpoint.get("balances", {}))
            self.engine.load_optimizer(checkpoint["optimizer"])
        if self.engine.average:
            self.engine.average.load_state_dict(
                checkpoint.get("encoder_ema") or checkpoint["encoder"]
            )
        self.step = checkpoint["step"]
        path = checkpoint_path(self.folder / "checkpoints", self.step)
        self.world.say(f"resumed from {path} at step {self.step}")

    def save(self) -> Path:
        """Write a checkpoint of the current step. One that exists already is written again."""
        folder = self.folder / "checkpoints"
        if not self.world.is_main:
            return checkpoint_path(folder, self.step)
        model = self.model
        content = {
            "encoder": model.encoder.state_dict(),
            "encoder_config": model.preprocessing.encoder_config(self.config.model.backbone),
            "objectives": model.objectives.state_dict(),
            "optimizer": self.engine.optimizer.state_dict(),
            "parameter_names": self.engine.parameter_names,
            "config": dataclasses.asdict(self.config),
            "statistics": self.data.statistics.get(UNNAMED, self.data.statistics),
            "dataset": self.data.identity(),
            "versions": versions(),
        }
        if self.config.balance_losses:
            content["balances"] = self.model.balances.state_dict()
        if self._teacher_fingerprint:
            content["teacher"] = self._teacher_fingerprint
        if self.engine.average:
            content["encoder_ema"] = self.engine.average.state_dict()
        return save_checkpoint(folder, self.step, content, self.config.keep_checkpoints)

    # --- the loop

    def loop(self, log: TrainingLog | None) -> None:
        """Train up to `config.steps`, or until any process receives SIGTERM."""
        config = self.config
        signal.signal(signal.SIGTERM, self._stop)
        if self.step >= config.steps:
            self.world.say(f"nothing to do: {self.folder} is at step {self.step} of {config.steps}")
            return
        if self.step == 0:
            self.validate(log)
            self.draw(log)
        loader = self.data.loader(
            first_sample=self.step * config.batch_size, pin_memory=self.device.type == "cuda"
        )
        meter, monitor = Meter(), StepMonitor(self.device)
        parts = meter.waiting_for(on_device(loader, self.device))
        stopping = False
        while self.step < config.steps and not stopping:
            seed_draws(config.seed, self.step)
            self.engine.set_rate(config.optimizer.rate(self.step, config.steps))
            step = self.engine.step(islice(parts, config.engine.accumulate), self.stopped_by_signal)
            monitor.add(self.step, step)
            self.step += 1
            meter.count(config.batch_size * self.data.num_frames)
            if log:
                log.advance()
            is_last = self.step == config.steps
            logs = self._is_due(config.log_every) or is_last
            validates = self._is_due(config.validate_every) or is_last
            draws, saves = self._is_due(config.pictures_every), self._is_due(config.save_every)
            stopping = self._check_steps(monitor, wait=logs or validates or saves)
            if logs:
                self._log_training(log, step, loader, meter)
            if validates:
                self.validate(log)
            if draws:
                self.draw(log)
            if saves:
                self.save()
            if validates or draws or saves:
                meter.reset()
        self._check_steps(monitor, wait=True)
        if stopping:
            self.world.say(
                f"stopped by SIGTERM after step {self.step}; the same command goes on from there"
            )

    def _stop(self, signum: int, frame: object) -> None:
        self.stopped_by_signal = True

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _check_steps(self, monitor: StepMonitor, wait: bool) -> bool:
        """Return whether a process was asked to stop. Raises NonFinite if a step was not finite."""
        statuses = monitor.finished(wait)
        for status in statuses:
            if status.bad_loss or status.bad_gradient:
                losses = to_numbers(self.world.mean(status.losses))
                raise NonFinite(self.world.of_main(self._report(status, losses)))
        return any(status.wants_to_stop for status in statuses)

    def _report(self, status: StepStatus, losses: dict[str, float]) -> str:
        """Report on rank 0 which samples a step that was not finite was computed from."""
        if not self.world.is_main:
            return ""
        parts = self.data.batches_of(status.number)
        batches = [batch for part in parts for batch in part.values()]
        return report_non_finite(self.folder / "non_finite.json", status, losses, batches)

    def _log_training(
        self, log: TrainingLog | None, step: Step, loader: MixtureLoader, meter: Meter
    ) -> None:
        skipped = torch.full((), float(loader.num_errors * self.world.size), device=self.device)
        gradients = embedding_gradients(self.model, step.embeddings, step.batches)
        metrics = self.world.mean(step.metrics | gradients | {"skipped_samples": skipped})
        metrics |= embedding_health(step.embeddings)
        if log:
            rate = {"learning_rate": self.engine.rate}
            log.write(self.step, "train", to_numbers(metrics) | rate | meter.read())

    def validate(self, log: TrainingLog | None) -> None:
        """Log the metrics of the held-out clips; they are the same for any number of processes.

        Each data set is evaluated alone. The loss is the mean of theirs over clips as in training.
        """
        validated = [s for s in self.data.sets.values() if s.validation is not None]
        if not validated:
            return
        metrics: dict[str, float] = {}
        loss = 0.0
        for data_set in validated:
            of_set = self._validate(data_set)
            loss += of_set.pop("loss") * data_set.num_clips
            metrics |= of_set
        if log:
            loss /= sum(data_set.num_clips for data_set in validated)
            log.write(self.step, "val", {"loss": loss, **metrics})

    def _validate(self, data_set: TrainingSet) -> dict[str, float]:
        torch.manual_seed(self.config.seed)  # does not affect training, which seeds every step
        assert data_set.validation is not None
        parts = ({data_set.name: batch} for batch in data_set.validation)
        results = []
        for part in on_device(parts, self.device):
            metrics, embeddings = self.engine.evaluate(part)
            results.append(to_numbers(self.world.mean(metrics) | embedding_health(embeddings)))
        return mean_of(results)

    def draw(self, log: TrainingLog | None) -> None:
        """Draw the pictures of this step on rank 0. This does not affect training."""
        config = self.config
        if log is None or not config.pictures_every:
            return
        folder = self.folder / "pictures"
        if not self._painters:
            self._painters = [
                Painter(folder, s.index, s.shown, s.config, config.seed, s.frames(), s.name)
                for s in self.data.sets.values()
            ]
        for painter in self._painters:
            log.pictures(self.step, painter.draw(self.model, self.step))


def seed_draws(seed: int, step: int) -> None:
    """Make what a step draws a function of (seed, step), the same on all processes."""
    high, low = np.random.SeedSequence((seed, step)).generate_state(2).tolist()
    torch.manual_seed(high << 32 | low)


def _train_or_stop(config: Config) -> None:
    path = train(config)
    if path.name < checkpoint_path(path.parent, config.steps).name:
        sys.exit(0)  # a signal that stops this run stops a sweep, too


def _check(config: Config) -> None:
    world = World.of_environment()
    check_config(config, world.size)
    choose_device(config.device, world.local_rank if world.size > 1 else None)


# `mcr train`, `python -m mcr.training.train`
main = HydraCommand(
    _train_or_stop, Config, schema="config", recipe="mcr", renamed=RENAMED, check=_check
)


def check_options(arguments: list[str], processes: int) -> None:
    """Raise UserError if a run of several processes with these arguments cannot work."""
    main.check(arguments, lambda config: check_config(config, processes))


if __name__ == "__main__":
    main()
