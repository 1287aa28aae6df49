"""Behaviour cloning: demonstrations and an encoder -> one policy. This is `mcr bc`.

    mcr bc demonstrations.data=lift.hdf5 observations.encoder=my_encoder
    mcr bc demonstrations.data=lift.hdf5 observations.rgb_model_name=resnet18 fine_tune_epochs=20

There are two stages. In the first the encoder is frozen, and its features are cached if nothing
about them changes from epoch to epoch. The second, on request, fine-tunes the encoder at a lower
learning rate with a new optimiser. An epoch depends only on the seed, on its number and on the
policy before it, so a resumed run gives what an uninterrupted one gives.

    <run_dir>/policy.pt       the policy with its encoder, and what training needs to continue
              metrics.jsonl   a line per epoch and split; `tensorboard/` holds the same
              features/       the feature cache; encoder.pt: the encoder, if no other file holds it
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcr.errors import UserError
from mcr.models.fine_tuning import count_parameters, param_groups
from mcr.policies.config import FREE_TO_CHANGE, RENAMED, Config, check_config
from mcr.policies.demonstrations import Demonstrations, open_demonstrations
from mcr.policies.observation_encoder import ObservationEncoder
from mcr.policies.policy import Policy, read_policy_file, write_policy_file
from mcr.policies.samples import Samples, batches, open_samples
from mcr.runs.atomic import remove_all_leftovers
from mcr.runs.devices import choose_device
from mcr.runs.hydra_command import HydraCommand
from mcr.runs.locks import exclusive_folder
from mcr.runs.log import MetricsLog
from mcr.runs.options import check_resume, require_same_config
from mcr.runs.processes import progress_bar


def train(config: Config) -> Path:
    """Do the run that `config` describes, or continue it. Returns the path of the policy.

    Raises UserError if anything is wrong with config, data, encoder, cache or an earlier run.
    """
    folder = Path(config.run_dir)
    with (
        exclusive_folder(folder, "choose another run_dir"),
        tempfile.TemporaryDirectory(prefix="mcr-bc-") as scratch,
    ):
        remove_all_leftovers(folder)
        return Cloning(config, Path(scratch)).loop()


@dataclass(frozen=True)
class Stage:
    """What the epochs of a stage share."""

    fine_tuning: bool
    samples: Samples
    optimizer: torch.optim.Optimizer


class Cloning:
    """The state of a run.

    epoch: number of finished epochs
    stage: that of the latest epoch; None before the first one
    """

    def __init__(self, config: Config, scratch: Path):
        """scratch: a folder for decoded pictures."""
        self.config, self.scratch = config, scratch
        self.folder = Path(config.run_dir)
        self.path = self.folder / "policy.pt"
        self.device = choose_device(config.device)
        saved = self._saved()
        self.demonstrations = open_demonstrations(config.demonstrations)
        if saved:
            self._require_same_data(saved)
        self.train_rows, self.held_out_rows = (
            self.demonstrations.steps(episodes)
            for episodes in (self.demonstrations.training, self.demonstrations.held_out)
        )
        if len(self.train_rows) < 2:
            data = config.demonstrations.data
            raise UserError(f"{data}: {len(self.train_rows)} steps are too few to train on")
        self.policy = build_policy(config, self.demonstrations, self.train_rows).to(self.device)
        self.epoch = 0
        self.stage: Stage | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        if saved:
            self._restore(saved)

    # --- saving

    def _saved(self) -> dict[str, Any] | None:
        """The file of the run that is to be continued, if there is one."""
        check_resume(self.folder, self.config.resume, self.path.exists())
        if not self.path.exists():
            return None
        saved = read_policy_file(self.path)
        now = dataclasses.asdict(self.config)
        defaults = dataclasses.asdict(type(self.config)())
        require_same_config(self.folder, saved["config"], now, FREE_TO_CHANGE, defaults=defaults)
        return saved

    def _require_same_data(self, saved: dict[str, Any]) -> None:
        """Raise UserError if the run was begun with other signals or pictures.

        Files of earlier versions do not say with which.
        """
        now = self.demonstrations.recordings.fingerprint
        if (then := saved.get("data", now)) != now:
            raise UserError(
                f"{self.folder} was begun with other demonstrations (fingerprint {then[:12]}; "
                f"{self.config.demonstrations.data} has {now[:12]}); choose another run_dir"
            )

    def _restore(self, saved: dict[str, Any]) -> None:
        self.policy.load_state_dict(saved["policy"])
        self.epoch = saved["epoch"]
        if self.epoch < self.config.num_epochs and self._is_fine_tuning() == saved["fine_tuning"]:
            stage = self.begin_stage()
            if stage.fine_tuning or not self.config.observations.freeze_encoder:
                self._require_same_rates(stage.optimizer, saved["optimizer"])
            stage.optimizer.load_state_dict(saved["optimizer"])
        print(f"resumed from {self.path} after epoch {self.epoch}")

    def _require_same_rates(self, optimizer: torch.optim.Optimizer, then: dict[str, Any]) -> None:
        """Raise UserError if other learning rates follow from the config today."""
        groups = zip(optimizer.param_groups, then["param_groups"], strict=True)
        if any(now["lr"] != before["lr"] for now, before in groups):
            raise UserError(
                f"{self.folder} was begun by an earlier version, in which random weights learnt "
                "at a tenth of the rate and with fixed batch statistics; choose another run_dir"
            )

    def save(self) -> None:
        """Write the policy, and what training needs to continue, atomically."""
        assert self.stage is not None
        content = {
            "config": dataclasses.asdict(self.config),
            "data": self.demonstrations.recordings.fingerprint,
            "epoch": self.epoch,
            "fine_tuning": self.stage.fine_tuning,
            "optimizer": self.stage.optimizer.state_dict(),
        }
        write_policy_file(self.path, self.policy, content)

    # --- stages

    def _is_fine_tuning(self) -> bool:
        return self.epoch >= self.config.policy.epochs

    def begin_stage(self) -> Stage:
        """Begin the stage of the next epoch: open its samples and make a new optimiser."""
        config, fine_tuning = self.config, self._is_fine_tuning()
        samples = open_samples(
            config, self.demonstrations, self.policy.observations, self.scratch, fine_tuning
        )
        rate = config.fine_tune_learning_rate if fine_tuning else config.policy.learning_rate
        groups = param_groups(self.policy, rate, config.encoder_lr_scale)
        self.stage = Stage(fine_tuning, samples, torch.optim.Adam(groups, fused=True))
        return self.stage

    def _unfreeze(self) -> None:
        """Let those stages of the encoder learn that learn in the next epoch.

        The optimiser holds their parameters from the beginning.
        """
        config, observations = self.config, self.policy.observations
        stages = config.fine_tune_stages or len(observations.encoder.stages)
        if config.unfreeze_every:
            begun = (self.epoch - config.policy.epochs) // config.unfreeze_every + 1
            stages = min(stages, begun)
        observations.unfreeze(stages)

    # --- the loop

    def loop(self) -> Path:
        """Train up to the last epoch. Returns the path of the policy."""
        config = self.config
        if self.epoch >= config.num_epochs:
            print(f"nothing to do: {self.folder} is at epoch {self.epoch} of {config.num_epochs}")
            return self.path
        per_epoch = len(batches(self.train_rows, config.policy.batch_size))
        began, samples = time.perf_counter(), 0
        with (
            MetricsLog(self.folder, "epoch", resumed_at=self.epoch) as log,
            progress_bar(None, "behaviour cloning", "steps", config.num_epochs * per_epoch) as bar,
        ):
            bar.update(self.epoch * per_epoch)
            while self.epoch < config.num_epochs:
                if self.stage is None or self.stage.fine_tuning != self._is_fine_tuning():
                    self.begin_stage()
                if self._is_fine_tuning():
                    self._unfreeze()
                metrics = self._train_epoch(bar)
                samples += len(self.train_rows)
                self.epoch += 1
                log.write(self.epoch, "train", metrics)
                bar.set_postfix(_shown(log))
                if self._is_due(config.validate_every) and len(self.held_out_rows):
                    log.write(self.epoch, "val", self.validate())
                if self._is_due(config.save_every):
                    self.save()
        rate = samples / (time.perf_counter() - began)
        print(f"\n{self.epoch} epochs of {len(self.train_rows)} steps, {rate:,.0f} steps/s")
        for split, metrics in log.latest.items():
            print(f"{split}: " + ", ".join(f"{name} {metrics[name]:.4g}" for name in metrics))
        print(f"policy: {self.path}")
        return self.path

    def _is_due(self, every: int) -> bool:
        last_of_a_stage = (self.config.policy.epochs, self.config.num_epochs)
        return self.epoch % every == 0 or self.epoch in last_of_a_stage

    def _train_epoch(self, bar: Any) -> dict[str, float]:
        seed = np.random.SeedSequence((self.config.seed, self.epoch))
        torch.manual_seed(int(seed.generate_state(1)[0]))  # of random crops and dropout
        order = np.random.default_rng(seed).permutation(self.train_rows)
        began, total = time.perf_counter(), torch.zeros((), device=self.device)
        self.policy.train()
        for rows in batches(order, self.config.policy.batch_size):
            total += self.step(rows) * len(rows)
            bar.update()
        loss = total.item() / len(order)
        if not np.isfinite(loss):
            raise UserError(
                f"the loss is {loss} in epoch {self.epoch + 1}; lower policy.learning_rate"
            )
        return {"loss": loss, "samples_per_s": len(order) / (time.perf_counter() - began)}

    def step(self, rows: np.ndarray) -> Tensor:
        """Update the policy by one batch. Returns the batch's mean loss."""
        assert self.stage is not None
        vectors, targets = self.stage.samples.batch(self.policy.observations, rows)
        loss = self.policy.loss(vectors, targets).mean()
        self.stage.optimizer.zero_grad()
        loss.backward()
        self.stage.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Metrics of the held-out steps.

        loss:         as in training
        action_error: mean squared error of the (first) action, in the units of the data
        """
        assert self.stage is not None
        self.policy.eval()
        totals = torch.zeros(2, device=self.device)
        for rows in batches(self.held_out_rows, self.config.policy.batch_size):
            vectors, targets = self.stage.samples.batch(self.policy.observations, rows)
            first = self.policy.actions(vectors)[:, 0]
            error = (first - targets[:, : first.shape[1]]).square().mean(dim=1)
            totals += torch.stack([self.policy.loss(vectors, targets).sum(), error.sum()])
        loss, error = (totals / len(self.held_out_rows)).tolist()
        return {"loss": loss, "action_error": error}


def build_policy(config: Config, data: Demonstrations, train_rows: np.ndarray) -> Policy:
    """An untrained policy, standardised by the steps to train on. Prints its size."""
    torch.manual_seed(config.seed)
    observations = ObservationEncoder(config.observations, data.cameras, data.low_dim.shape[1])
    policy = Policy(observations, data.actions.shape[1], config.policy, data.signals)
    observations.low_dim.fit(torch.from_numpy(data.low_dim[train_rows]))
    if config.policy.standardise_actions:
        policy.network.standardise.fit(torch.from_numpy(data.actions[train_rows]))
    print(
        f"data: {len(data.training)} demonstrations to train on, {len(data.held_out)} held out; "
        f"cameras {', '.join(data.cameras)}; signals {', '.join(data.signals) or 'none'}"
    )
    print(f"observation encoder: {count_parameters(observations)}")
    print(f"policy: {count_parameters(policy)}")
    return policy


def _shown(log: MetricsLog) -> dict[str, str]:
    """What the progress bar shows of the newest metrics."""
    return {
        f"{split} {name}": f"{value:.4g}"
        for split, metrics in log.latest.items()
        for name, value in metrics.items()
        if name != "samples_per_s"
    }


def _check(config: Config) -> None:
    check_config(config)
    choose_device(config.device)


# `mcr bc` and scripts/train_bc.py
main = HydraCommand(train, Config, schema="bc_config", recipe="bc", renamed=RENAMED, check=_check)
