"""The options of a pre-training run. The recipes in `cfgs/` change some of them.

Each part has its own config beside its code (`DataConfig` in `data/loader.py`, ...). This file puts
them together, checks what concerns several parts, and says what a resumed run may change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mcr.data.loader import DataConfig
from mcr.errors import UserError, require_choice
from mcr.objectives import ObjectivesConfig
from mcr.runs.options import RESUME
from mcr.training.engine import PRECISIONS, EngineConfig
from mcr.training.optimizer import OptimizerConfig


@dataclass
class ModelConfig:
    """The network that is trained.

    backbone:    resnet18, resnet34, resnet50, vit_s_16, ... (`mcr.models.backbones.BACKBONES`), or
                 "timm:NAME". With `init`, the default stands for the network of those weights
    image_size:  pixels per side of the network's input; 176 costs 1.6 times less than 224. It holds
                 with `init`, too: a ViT whose positions are for another size is refused
    init:        weights to start from, which is anything that `mcr.load_model` reads; their mean,
                 deviation and interpolation are those of the encoder. "" = random weights
    frozen_bn:   batch normalisation keeps its initial statistics (for fine-tuning)
    ghost_batch: number of clips whose images share batch-norm statistics; 0 = the global batch,
                 whichever processes hold it. 32 clips (160 images) is upstream's batch, so that a
                 larger batch is trained with the same statistics. It needs
                 objectives.time_contrastive.group
    ema:         decay of an exponential moving average of the encoder's weights, such as 0.999,
                 which checkpoints then hold too and `mcr export --ema` exports; it averages over
                 about 1 / (1 - ema) steps. 0 = none
    """

    backbone: str = "resnet50"
    image_size: int = 224
    frozen_bn: bool = False
    ghost_batch: int = 0
    ema: float = 0.0
    init: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise UserError(f"model.ema={self.ema} must be at least 0 and below 1, such as 0.999")


@dataclass
class Config:
    """One pre-training run.

    run_dir:            folder of everything that the run writes: config, checkpoints, logs
    resume:             "auto" continues the run in `run_dir`; "never" refuses a used `run_dir`
    allow_config_change: resume although the config differs from the one the run began with
    seed:               of initialisation and sampling
    steps:              optimiser steps of the whole run
    batch_size:         clips per step, over all processes; a clip is five images
    device:             "auto" (a GPU if there is one), "cpu", "cuda", ...
    precision:          "auto" (bf16 on a GPU, else fp32), "fp32", "bf16"
    deterministic:      the same bits on the same machine every time, also on a GPU; slower there
    normalise_signals:  normalise states and actions by their mean and standard deviation over the
                        data set. Upstream: raw values, so that the units of a signal (radians,
                        metres, opening of the gripper) decide how much it counts
    loss_weights:       weight of each objective; 0 leaves it out
    log_every, validate_every, save_every: in steps
    pictures_every:     steps between pictures (run_dir/pictures and TensorBoard); 0 draws none
    log_wandb:          log to Weights & Biases too: pip install 'mcr[wandb]'. Its environment
                        variables apply (WANDB_MODE=offline, WANDB_PROJECT, ...)
    val_clips:          held-out clips per validation; 0 = no validation
    keep_checkpoints:   number of newest checkpoints that are kept
    """

    run_dir: str = "runs/mcr"
    resume: str = "auto"
    allow_config_change: bool = False
    seed: int = 0
    steps: int = 500_000
    batch_size: int = 32
    device: str = "auto"
    precision: str = "auto"
    deterministic: bool = False
    normalise_signals: bool = True
    log_every: int = 50
    validate_every: int = 2_000
    pictures_every: int = 10_000
    log_wandb: bool = False
    val_clips: int = 512
    save_every: int = 2_000
    keep_checkpoints: int = 3
    loss_weights: dict[str, float] = field(
        default_factory=lambda: {
            "dynamics_alignment": 1.0,
            "action_prediction": 1.0,
            "time_contrastive": 1.0,
            "distillation": 0.0,
        }
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    data: DataConfig = field(default_factory=DataConfig)


# A resumed run may change these. They change how a run computes, not what.
FREE_TO_CHANGE = (
    "run_dir",
    "resume",
    "allow_config_change",
    "steps",
    "device",
    "deterministic",
    "engine.recompute",
    "engine.compile",
    "engine.bucket_mb",
    "log_every",
    "pictures_every",
    "log_wandb",
    "save_every",
    "keep_checkpoints",
    "objectives.distillation.teacher",  # its fingerprint may not change
    "data.root",
    "data.index",
    "data.workers",
    "data.prefetch",
    "data.timeout_s",
    "data.on_error",
    "data.max_errors",
)


# Keys of earlier versions -> their present names.
RENAMED = {"data.views": "data.cameras"}


def free_to_change(config: Config) -> set[str]:
    """Return the keys that a run may change when it is resumed with `config`."""
    # Under learning-rate decay, the number of steps changes what is computed.
    return {*FREE_TO_CHANGE} - ({"steps"} if config.optimizer.decay_steps else set())


def check_config(config: Config, num_processes: int) -> None:
    """Raise UserError for values that cannot work for a run of `num_processes` processes."""
    require_choice("resume", config.resume, RESUME)
    require_choice("precision", config.precision, PRECISIONS)
    if not config.data.root:
        raise UserError("data.root is not set: give a data set, of any format in docs/data.md")
    for name in (
        "steps", "batch_size", "log_every", "validate_every", "save_every", "keep_checkpoints"
    ):  # fmt: skip
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)} must be at least 1")
    if config.optimizer.warmup_steps > config.steps:
        raise UserError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} is more than the run's "
            f"steps={config.steps}: the rate would never be optimizer.lr"
        )
    pieces = config.engine.accumulate * num_processes
    if config.batch_size % pieces:
        raise UserError(
            f"batch_size={config.batch_size} clips do not divide by {num_processes} processes "
            f"times engine.accumulate={config.engine.accumulate}"
        )
    if config.model.ghost_batch:
        _check_ghost_batch(config, config.batch_size // pieces)


def _check_ghost_batch(config: Config, share: int) -> None:
    """share: the clips that one process computes at a time."""
    ghost, contrast = config.model.ghost_batch, config.objectives.time_contrastive
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
