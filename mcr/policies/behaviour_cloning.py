"""Behaviour cloning: demonstrations and an encoder -> one policy, by scripts/train_bc.py.

    python scripts/train_bc.py data=lift.hdf5 encoder=my_encoder pretrained_encoder=True
    python scripts/train_bc.py data=lift.hdf5 rgb_model_name=resnet18 fine_tune_epochs=20

Two stages: with the encoder frozen (on cached features, if nothing about them changes from epoch to
epoch), then, on request, fine-tuning at a lower rate with a new optimiser. What epoch e does is a
function of (seed, e) and of the policy before it, so a resumed run is the run that never stopped.
All seeds of a table at once are trained by `policy` instead.

    <run_dir>/policy.pt       the policy, encoder included, and what training needs to go on
              metrics.jsonl   a line per epoch and split; TensorBoard's files beside it
              features/       the cache; encoder.pt: what computed it, if that is no file yet
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from einops import rearrange
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import mcr
from mcr.errors import UserError, nearest, plain_errors, require_choice
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.models.backbones import BACKBONES
from mcr.models.fine_tuning import count_parameters, param_groups
from mcr.models.layouts import CHECKPOINT_FORMAT, Weights
from mcr.models.loading import build_encoder
from mcr.models.preprocessing import Preprocessing
from mcr.policies.demonstrations import (
    DemonstrationConfig,
    Demonstrations,
    open_demonstrations,
)
from mcr.policies.heads import action_chunks, build_head
from mcr.policies.observation_encoder import ObservationConfig, ObservationEncoder
from mcr.policies.policy import PolicyConfig, mean_and_std
from mcr.runs.processes import progress_bar

FORMAT = "mcr-bc-1"
_NO_ENCODER_YET = "encoder.pt"


@dataclass
class Config(DemonstrationConfig, ObservationConfig, PolicyConfig):
    """One run: which demonstrations, what becomes of observations, which policy, and

    run_dir:        everything the run writes
    resume:         "auto" continues what `run_dir` holds; "never" refuses a used one
    seed:           of random weights, order of samples and crops
    device:         "auto" (a GPU if there is one), "cpu", "cuda", ...
    cache_features: compute the features of a frozen encoder once; not possible with random crops
    feature_cache:  folder of the cache, which runs may share; "" = <run_dir>/features
    workers:        processes that compute it; 0 = one per core
    encoder_lr_scale: an encoder that learns does so at this share of the learning rate
    fine_tune_epochs: of the second stage, in which a frozen encoder thaws; 0 = no such stage
    fine_tune_learning_rate: of that stage
    fine_tune_stages: how many of the encoder's stages thaw, from its output on; 0 = all
    unfreeze_every: epochs after which one stage more thaws; 0 = all of them at once
    validate_every, save_every: in epochs
    """

    feature_norm: str = "none"
    standardise_actions: bool = True
    run_dir: str = "runs/bc"
    resume: str = "auto"
    seed: int = 0
    device: str = "auto"
    cache_features: bool = True
    feature_cache: str = ""
    workers: int = 0
    encoder_lr_scale: float = 0.1
    fine_tune_epochs: int = 0
    fine_tune_learning_rate: float = 1e-4
    fine_tune_stages: int = 0
    unfreeze_every: int = 0
    validate_every: int = 1
    save_every: int = 10

    def __post_init__(self) -> None:
        ObservationConfig.__post_init__(self)
        PolicyConfig.__post_init__(self)
        require_choice("resume", self.resume, ("auto", "never"))
        for name in ("fine_tune_epochs", "fine_tune_stages", "unfreeze_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.fine_tune_epochs and not self.freeze_encoder:
            raise UserError(
                "fine_tune_epochs is the stage after a frozen one: leave out freeze_encoder=False"
            )


# May differ between a run and its continuation: they change how it is run, not what it computes.
FREE_TO_CHANGE = (
    "run_dir",
    "resume",
    "device",
    "feature_cache",
    "workers",
    "validate_every",
    "save_every",
)


# --------------------------------------------------------------------------- the policy


class Policy(nn.Module):
    """Observations -> actions. A numbers of an action, C steps of a chunk.

    signals: names of the low-dimensional signals that it wants, side by side.
    """

    signals: tuple[str, ...] = ()
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, observations: ObservationEncoder, action_dim: int, config: PolicyConfig):
        super().__init__()
        self.observations = observations
        self.chunk = config.chunk
        self.head = build_head(config.head, config.chunk * action_dim, config.modes)
        layers: list[nn.Module] = [nn.Dropout(config.dropout)]
        width = observations.out_dim
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers, nn.Linear(width, self.head.width))
        self.register_buffer("action_mean", torch.zeros(action_dim))
        self.register_buffer("action_std", torch.ones(action_dim))

    def loss(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """What `observations` made, [B, out_dim], and actions [B, C * A] -> losses [B]."""
        mean, std = (each.repeat(self.chunk) for each in (self.action_mean, self.action_std))
        return self.head.loss(self.body(vectors), (targets - mean) / std)

    def actions(self, vectors: Tensor) -> Tensor:
        """What `observations` made, [B, out_dim] -> [B, C, A]."""
        flat = self.head.action(self.body(vectors))
        return (
            rearrange(flat, "b (c a) -> b c a", c=self.chunk) * self.action_std + self.action_mean
        )

    @torch.inference_mode()
    def act(self, pictures: Mapping[str, Any], low_dim: Any = None) -> np.ndarray:
        """Raw pictures of each camera, [B, H, W, 3], signals [B, P] -> float32 [B, A].

        Of a chunk, the first action. In eval mode, as `load_policy` returns it.
        """
        if low_dim is not None:
            low_dim = torch.as_tensor(low_dim).float().to(self.action_mean.device)
        return self.actions(self.observations(pictures, low_dim))[:, 0].cpu().numpy()


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """The policy of a run's `policy.pt`, in eval mode.

    `policy.observations.cameras` and `policy.signals` name what it wants.
    Raises UserError if the file is none.
    """
    content = _read(Path(path))
    policy = _rebuild(content, Path(path))
    policy.load_state_dict(content["policy"])
    policy.signals = tuple(content["signals"])
    return policy.eval().to(device)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise UserError(f"{path}: unreadable policy ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: holds no policy of the format {FORMAT!r}")
    return content


def _rebuild(content: dict[str, Any], path: Path) -> Policy:
    """The policy without its weights, but for the encoders', which are in the file."""
    config = Config(**content["config"])
    encoders = []
    for number, description in enumerate(content["encoders"]):
        backbone, preprocessing = Preprocessing.from_config(description)
        prefix = f"observations.encoders.{number}."
        if backbone not in BACKBONES:
            prefix += "network."  # timm's, inside its Encoder
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in content["policy"].items()
            if name.startswith(prefix)
        }
        encoders.append(build_encoder(Weights(path, "policy", tensors, backbone, preprocessing)))
    observations = ObservationEncoder(
        config, content["cameras"], len(content["policy"]["observations.low_dim_mean"]), encoders
    )
    return Policy(observations, len(content["policy"]["action_mean"]), config)


# --------------------------------------------------------------------------- what it learns from


@dataclass(frozen=True)
class Samples:
    """N steps. low_dim: float32 [N, P]; targets: float32 [N, C * A]; and either

    features: of a cache, [N, V, D] or [N, V, D, h, w]; or pictures: uint8 [N, H, W, 3] by camera
    """

    low_dim: Tensor
    targets: Tensor
    features: np.ndarray | None = None
    pictures: Mapping[str, np.ndarray] | None = None

    def batch(self, observations: ObservationEncoder, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """What the policy's body sees, [B, out_dim], and what it shall say, [B, C * A]."""
        device = observations.low_dim_mean.device
        low_dim, targets = (values[rows].to(device) for values in (self.low_dim, self.targets))
        if self.features is not None:
            features = torch.from_numpy(self.features[rows]).to(device)
            return observations.from_features(features, low_dim), targets
        assert self.pictures is not None
        pictures = {name: torch.from_numpy(all_[rows]) for name, all_ in self.pictures.items()}
        return observations(pictures, low_dim), targets


def batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut into batches as equal as possible, none of one row where there are more."""
    count = min(-(-len(rows) // batch_size), len(rows) // 2)
    return np.array_split(rows, max(1, count))


# --------------------------------------------------------------------------- the run


def train(config: Config) -> Path:
    """Run, or continue, what `config` describes. Returns the path of the policy.

    Raises UserError for anything wrong with config, data, encoder, cache or an earlier run.
    """
    with tempfile.TemporaryDirectory(prefix="mcr-bc-") as scratch:
        return Cloning(config, Path(scratch)).loop()


class Cloning:
    """One run's state: demonstrations, policy, optimiser, epoch."""

    def __init__(self, config: Config, scratch: Path):
        """scratch: a folder for decoded pictures."""
        self.config, self.scratch = config, scratch
        self.folder = Path(config.run_dir)
        self.path = self.folder / "policy.pt"
        self.device = _device(config.device)
        self.epoch = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self.fine_tuning = False
        saved = self._saved()
        self.demonstrations = open_demonstrations(config)
        self.train_rows, self.held_out_rows = (
            self.demonstrations.steps(episodes)
            for episodes in (self.demonstrations.training, self.demonstrations.held_out)
        )
        if len(self.train_rows) < 2:
            raise UserError(f"{config.data}: {len(self.train_rows)} steps are too few to train on")
        self._build()
        self.folder.mkdir(parents=True, exist_ok=True)
        if saved:
            self._restore(saved)

    # --- building

    def _build(self) -> None:
        config, data = self.config, self.demonstrations
        torch.manual_seed(config.seed)
        observations = ObservationEncoder(config, data.cameras, data.low_dim.shape[1])
        self.policy = Policy(observations, data.actions.shape[1], config)
        low_dim, actions = (
            torch.from_numpy(a[self.train_rows]) for a in (data.low_dim, data.actions)
        )
        observations.take_statistics(low_dim)
        if config.standardise_actions:
            self.policy.action_mean, self.policy.action_std = mean_and_std(actions)
        self.policy.to(self.device)
        _describe(data, observations, self.policy)

    def _saved(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        if self.config.resume == "never":
            raise UserError(f"{self.folder}: holds a run; choose another run_dir or resume=auto")
        saved = _read(self.path)
        now, then = dataclasses.asdict(self.config), saved["config"]
        changed = [
            f"\n  {key}: {then.get(key)} -> {value}"
            for key, value in now.items()
            if key not in FREE_TO_CHANGE and then.get(key) != value
        ]
        if changed:
            raise UserError(
                f"{self.folder} was begun with another config:{''.join(changed)}\n"
                "choose another run_dir"
            )
        return saved

    def _restore(self, saved: dict[str, Any]) -> None:
        self.policy.load_state_dict(saved["policy"])
        self.epoch = saved["epoch"]
        if self.epoch < self._num_epochs and self._is_fine_tuning() == saved["fine_tuning"]:
            self.begin_stage()
            assert self.optimizer is not None
            self.optimizer.load_state_dict(saved["optimizer"])
        print(f"resumed from {self.path} after epoch {self.epoch}")

    def save(self) -> None:
        """Write the policy and what training needs to go on, whole or not at all."""
        assert self.optimizer is not None
        observations = self.policy.observations
        content = {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "epoch": self.epoch,
            "fine_tuning": self.fine_tuning,
            "cameras": list(self.demonstrations.cameras),
            "signals": list(self.demonstrations.signals),
            "encoders": [
                encoder.preprocessing.encoder_config(encoder.backbone)
                for encoder in observations.all_encoders()
            ],
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        _write(self.path, content)

    # --- stages

    @property
    def _num_epochs(self) -> int:
        return self.config.epochs + self.config.fine_tune_epochs

    def _is_fine_tuning(self) -> bool:
        return self.epoch >= self.config.epochs

    def begin_stage(self) -> None:
        """What the present epoch's stage learns from, and a new optimiser."""
        config, policy = self.config, self.policy
        self.fine_tuning = self._is_fine_tuning()
        self.samples = self._samples()
        rate = config.fine_tune_learning_rate if self.fine_tuning else config.learning_rate
        groups = param_groups(policy, rate, config.encoder_lr_scale)
        self.optimizer = torch.optim.Adam(groups, fused=True)

    def _thaw(self) -> None:
        """Let what shall learn in this epoch do so; the optimiser knows of it already."""
        config, observations = self.config, self.policy.observations
        stages = config.fine_tune_stages or len(observations.encoder.stages)
        if config.unfreeze_every:
            begun = (self.epoch - config.epochs) // config.unfreeze_every + 1
            stages = min(stages, begun)
        observations.unfreeze(stages)

    def _samples(self) -> Samples:
        data, config = self.demonstrations, self.config
        targets = action_chunks(data.actions, data.recordings.lengths, config.chunk)
        numbers = torch.from_numpy(data.low_dim), torch.from_numpy(targets)
        reason = "it learns" if self.fine_tuning else self._why_no_cache()
        if not reason:
            return Samples(*numbers, features=self._features())
        print(f"encoder in the loop: {reason}")
        paths = {camera: self.scratch / f"{n}.npy" for n, camera in enumerate(data.cameras)}
        pictures = {camera: data.pictures(camera, path) for camera, path in paths.items()}
        return Samples(*numbers, pictures=pictures)

    def _why_no_cache(self) -> str:
        config, backbone = self.config, self.policy.observations.encoder.backbone
        reasons = {
            "it learns": not config.freeze_encoder,
            "cache_features=False": not config.cache_features,
            "crops differ from epoch to epoch": config.crops > 0,
            "each camera has its own random one": not (
                config.share_encoder or config.pretrained_encoder
            ),
            f"{backbone} with changed preprocessing": self._source() is None,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _source(self) -> str | None:
        """What `load_model` makes the encoder of; written first if there is no such file."""
        config, encoder = self.config, self.policy.observations.encoder
        if config.pretrained_encoder and not config.image_size and config.normalisation == "own":
            return config.encoder or f"torchvision:{encoder.backbone}"
        if encoder.backbone not in BACKBONES:
            return None
        path = self.folder / _NO_ENCODER_YET
        content = {
            "format": CHECKPOINT_FORMAT,
            "encoder": encoder.state_dict(),
            "encoder_config": encoder.preprocessing.encoder_config(encoder.backbone),
        }
        _write(path, content)
        return str(path)

    def _features(self) -> np.ndarray:
        config = self.config
        out = Path(config.feature_cache or self.folder / "features")
        options = FeatureConfig(
            output="pooled" if config.pooling == "pooled" else "spatial",
            cameras=self.demonstrations.cameras,
            device=str(self.device),
            workers=config.workers,
        )
        source = self._source()
        assert source is not None
        began = time.perf_counter()
        array = extract_features(source, config.data, out, options).array
        print(f"features of {len(array)} steps in {out} ({time.perf_counter() - began:.1f} s)")
        return array

    # --- the loop

    def loop(self) -> Path:
        """Train up to the last epoch."""
        if self.epoch >= self._num_epochs:
            print(f"nothing to do: {self.folder} is at epoch {self.epoch} of {self._num_epochs}")
            return self.path
        per_epoch = len(batches(self.train_rows, self.config.batch_size))
        began, samples = time.perf_counter(), 0
        with (
            Log(self.folder, self.epoch) as log,
            progress_bar(None, "behaviour cloning", "steps", self._num_epochs * per_epoch) as bar,
        ):
            bar.update(self.epoch * per_epoch)
            while self.epoch < self._num_epochs:
                if self.optimizer is None or self.fine_tuning != self._is_fine_tuning():
                    self.begin_stage()
                if self.fine_tuning:
                    self._thaw()
                metrics = self._train_epoch(bar)
                samples += len(self.train_rows)
                self.epoch += 1
                bar.set_postfix(log.write(self.epoch, "train", metrics))
                if self._is_due(self.config.validate_every) and len(self.held_out_rows):
                    log.write(self.epoch, "val", self.validate())
                if self._is_due(self.config.save_every):
                    self.save()
        self._summarise(samples / (time.perf_counter() - began), log.latest)
        return self.path

    def _is_due(self, every: int) -> bool:
        return self.epoch % every == 0 or self.epoch in (self.config.epochs, self._num_epochs)

    def _train_epoch(self, bar: Any) -> dict[str, float]:
        seed = np.random.SeedSequence((self.config.seed, self.epoch))
        torch.manual_seed(int(seed.generate_state(1)[0]))  # random crops
        order = np.random.default_rng(seed).permutation(self.train_rows)
        began, total = time.perf_counter(), torch.zeros((), device=self.device)
        self.policy.train()
        for rows in batches(order, self.config.batch_size):
            total += self.step(rows) * len(rows)
            bar.update()
        loss = total.item() / len(order)
        if not np.isfinite(loss):
            raise UserError(f"the loss is {loss} in epoch {self.epoch + 1}; lower learning_rate")
        rate = len(order) / (time.perf_counter() - began)
        return {"loss": loss, "samples_per_s": rate}

    def step(self, rows: np.ndarray) -> Tensor:
        """One update; the batch's mean loss."""
        assert self.optimizer is not None
        vectors, targets = self.samples.batch(self.policy.observations, rows)
        loss = self.policy.loss(vectors, targets).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Of the held-out steps: loss, and mean squared error of the (first) action as recorded."""
        self.policy.eval()
        totals = torch.zeros(2, device=self.device)
        for rows in batches(self.held_out_rows, self.config.batch_size):
            vectors, targets = self.samples.batch(self.policy.observations, rows)
            first = self.policy.actions(vectors)[:, 0]
            error = (first - targets[:, : first.shape[1]]).square().mean(dim=1)
            totals += torch.stack([self.policy.loss(vectors, targets).sum(), error.sum()])
        loss, error = (totals / len(self.held_out_rows)).tolist()
        return {"loss": loss, "action_error": error}

    def _summarise(self, rate: float, latest: Mapping[str, Mapping[str, float]]) -> None:
        print(f"\n{self.epoch} epochs of {len(self.train_rows)} steps, {rate:,.0f} steps/s")
        for split, metrics in latest.items():
            print(f"{split}: " + ", ".join(f"{name} {metrics[name]:.4g}" for name in metrics))
        print(f"policy: {self.path}")


class Log:
    """metrics.jsonl and TensorBoard. Lines after `epoch`, of a run that was killed, are dropped."""

    def __init__(self, folder: Path, epoch: int):
        self.latest: dict[str, dict[str, float]] = {}
        self._path = folder / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = list(_up_to(lines, epoch))
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(self._path)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._board.close()

    def write(self, epoch: int, split: str, metrics: dict[str, float]) -> dict[str, str]:
        """Add a line; what is worth showing of it."""
        self.latest[split] = metrics
        with self._path.open("a") as file:
            file.write(json.dumps({"epoch": epoch, "split": split, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, epoch)
        return {
            f"{split} {name}": f"{values[name]:.4g}"
            for split, values in self.latest.items()
            for name in values
            if name != "samples_per_s"
        }


def _up_to(lines: list[str], epoch: int) -> Iterator[str]:
    for line in lines:
        try:
            if json.loads(line)["epoch"] <= epoch:
                yield line
        except ValueError:  # the last line of a killed run may be cut short
            return


def _describe(data: Demonstrations, observations: ObservationEncoder, policy: Policy) -> None:
    print(
        f"data: {len(data.training)} demonstrations to train on, {len(data.held_out)} held out; "
        f"cameras {', '.join(data.cameras)}; signals {', '.join(data.signals) or 'none'}"
    )
    print(f"observation encoder: {count_parameters(observations)}")
    print(f"policy: {count_parameters(policy)}")


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


# --------------------------------------------------------------------------- command line


def main() -> None:
    """`scripts/train_bc.py`."""
    ConfigStore.instance().store(name="bc_config", node=Config)
    with plain_errors():
        check_overrides(sys.argv[1:])
    package = Path(mcr.__file__).parent
    folders = [package / "cfgs", package.parent / "cfgs"]  # installed, or of a source tree
    folder = next(folder for folder in folders if folder.is_dir())
    hydra.main(version_base="1.3", config_path=str(folder), config_name="bc")(_main)()


def check_overrides(arguments: list[str]) -> None:
    """Raise UserError for a `key=value` whose key there is not, naming the nearest one."""
    known = [field.name for field in dataclasses.fields(Config)]
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        is_ours = equals and not argument.startswith("-") and not key.startswith("hydra")
        if is_ours and key.lstrip("+~") not in known:
            raise UserError(f"unknown option {key!r}{nearest(key, known)}")


def _main(options: DictConfig) -> None:
    with plain_errors():
        config = OmegaConf.to_object(options)
        assert isinstance(config, Config)
        train(config)
