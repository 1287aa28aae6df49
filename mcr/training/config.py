"""Config: everything a run can be told, typed; the recipes in `cfgs/` are differences from it.

Each part owns its own config beside its code (`DataConfig` in `data/loader.py`, ...). This file
puts them together and says which options a continued run may change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mcr.data.loader import DataConfig
from mcr.objectives import ObjectivesConfig
from mcr.training.engine import EngineConfig, OptimizerConfig


@dataclass
class ModelConfig:
    """The network that is trained.

    backbone:    resnet18, resnet34, resnet50, vit_s_16, ... (`mcr.models.backbones.BACKBONES`)
    image_size:  pixels per side that enter it; 176 costs 1.6 times less than 224
    frozen_bn:   batch normalisation keeps its initial statistics (for fine-tuning)
    ghost_batch: clips whose images share a batch-norm statistic; 0 = all of the global batch,
                 however many processes hold it. 32 (160 images) trains a larger batch with the
                 statistics of upstream's; needs objectives.time_contrastive.group
    """

    backbone: str = "resnet50"
    image_size: int = 224
    frozen_bn: bool = False
    ghost_batch: int = 0


@dataclass
class Config:
    """One training run.

    run_dir:            everything the run writes: config, checkpoints, logs
    resume:             "auto" continues what `run_dir` holds; "never" refuses a used `run_dir`
    allow_config_change: resume although the config differs from the one the run began with
    seed:               of initialisation and sampling
    steps:              optimiser steps in all
    batch_size:         clips per step, of all processes together; five images each
    device:             "auto" (a GPU if there is one), "cpu", "cuda", ...
    precision:          "auto" (bf16 on a GPU, else fp32), "fp32", "bf16"
    deterministic:      the same bits on the same machine every time, also on a GPU; slower there
    normalise_signals:  states and actions by the data set's mean and standard deviation.
                        Upstream: raw, so that radians, metres and gripper weigh as they happen to
    loss_weights:       per objective; 0 leaves it out
    log_every, validate_every, save_every: in steps
    pictures_every:     steps between pictures (run_dir/pictures and TensorBoard); 0 draws none
    log_wandb:          log to Weights & Biases too: pip install 'mcr[wandb]'; its own environment
                        variables apply (WANDB_MODE=offline, WANDB_PROJECT, ...)
    val_clips:          held-out clips per validation
    keep_checkpoints:   the newest k are kept
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
        }
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    data: DataConfig = field(default_factory=DataConfig)


# May differ between a run and its continuation: they change how it is run, not what it computes.
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
    "data.root",
    "data.index",
    "data.workers",
    "data.prefetch",
    "data.on_error",
    "data.max_errors",
)


# Keys of configs that runs were begun with -> what they are called now.
RENAMED = {"data.views": "data.cameras"}


def free_to_change(config: Config) -> set[str]:
    """Keys that may differ between a run and its continuation under `config`."""
    # A rate that falls towards the last step depends on which step is the last.
    return {*FREE_TO_CHANGE} - ({"steps"} if config.optimizer.decay_steps else set())
