"""The options of a pre-training run. The recipes in `cfgs/` change some of them.

Each part has its own config beside its code (`DataConfig` in `data/loader.py`, ...). This file puts
them together, checks what concerns several parts, and says what a resumed run may change.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from mcr.data.loader import DataConfig
from mcr.data.mixture import clip_counts, data_sets, weights, with_data_sets
from mcr.errors import UserError
from mcr.models.backbones import NETWORK_NAME
from mcr.models.preprocessing import MOST_PIXELS
from mcr.models.trainable import require_network
from mcr.objectives import OBJECTIVES, ObjectivesConfig, check_weights
from mcr.runs.options import RESUME
from mcr.runs.ranges import (
    ANY_TEXT,
    DEVICE_OR_AUTO,
    FOLDER_TO_WRITE,
    NAME,
    SEED,
    check_fields,
    choice,
    named,
    number,
    whole,
)
from mcr.training.engine import PRECISIONS, EngineConfig
from mcr.training.optimizer import OptimizerConfig


@dataclass
class ModelConfig:
    """The network that is trained.

    backbone:    resnet18, resnet34, resnet50, vit_s_16, ... (`mcr.models.backbones.BACKBONES`), or
                 "timm:NAME". With `init`, the default stands for the network of those weights
    image_size:  pixels per side of the network's input; 176 costs 1.6 times less than 224. It holds
                 with `init`, too: a ViT whose positions are for another size is refused
    init:        weights to start from: anything that `mcr.load_model` reads, or "imagenet", the
                 ImageNet weights of the backbone; their mean, deviation and interpolation are those
                 of the encoder. "" = random weights
    frozen_bn:   batch normalisation keeps the statistics of `init`
    ghost_batch: number of clips whose images share batch-norm statistics; 0 = the global batch,
                 whichever processes hold it. 32 clips (160 images) is upstream's batch, so that a
                 larger batch is trained with the same statistics. It needs
                 objectives.time_contrastive.group
    ema:         decay of an exponential moving average of the encoder's weights, such as 0.999,
                 which checkpoints then hold too and `mcr export --ema` exports; it averages over
                 about 1 / (1 - ema) steps. 0 = none
    """

    backbone: Annotated[str, NETWORK_NAME] = "resnet50"
    image_size: Annotated[int, whole(1, MOST_PIXELS)] = 224
    frozen_bn: bool = False
    ghost_batch: Annotated[int, whole(0)] = 0
    ema: Annotated[float, number(least=0, below=1, note="such as 0.999")] = 0.0
    init: Annotated[str, ANY_TEXT] = ""

    def __post_init__(self) -> None:
        check_fields(self, "model.")


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
    balance_losses:     scale the losses so that their gradients on the embedding are in the ratio
                        of loss_weights, by a moving average over about 100 steps. Without it,
                        loss_weights are factors on the losses as they are
    log_every, validate_every, save_every: in steps
    pictures_every:     steps between pictures (run_dir/pictures and TensorBoard); 0 draws none
    log_wandb:          log to Weights & Biases too: pip install 'mcr[wandb]'. Its environment
                        variables apply (WANDB_MODE=offline, WANDB_PROJECT, ...)
    val_clips:          held-out clips per validation; 0 = no validation
    keep_checkpoints:   number of newest checkpoints that are kept
    """

    run_dir: Annotated[str, NAME] = "runs/mcr"
    resume: Annotated[str, choice(RESUME)] = "auto"
    allow_config_change: bool = False
    seed: Annotated[int, SEED] = 0
    steps: Annotated[int, whole(1)] = 500_000
    batch_size: Annotated[int, whole(1)] = 32
    device: Annotated[str, DEVICE_OR_AUTO] = "auto"
    precision: Annotated[str, choice(PRECISIONS)] = "auto"
    deterministic: bool = False
    normalise_signals: bool = True
    log_every: Annotated[int, whole(1)] = 50
    validate_every: Annotated[int, whole(1)] = 2_000
    pictures_every: Annotated[int, whole(0)] = 10_000
    log_wandb: bool = False
    val_clips: Annotated[int, whole(0)] = 512
    save_every: Annotated[int, whole(1)] = 2_000
    keep_checkpoints: Annotated[int, whole(1)] = 3
    loss_weights: Annotated[dict[str, float], named(OBJECTIVES, number(least=0))] = field(
        default_factory=lambda: {
            "dynamics_alignment": 1.0,
            "action_prediction": 1.0,
            "time_contrastive": 1.0,
            "state_contrast": 0.0,
            "distillation": 0.0,
        }
    )
    balance_losses: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        check_fields(self)


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
    free = {*FREE_TO_CHANGE} - ({"steps"} if config.optimizer.decay_steps else set())
    of_data = [key.removeprefix("data.") for key in free if key.startswith("data.")]
    return free | {f"data.mix.{name}.{key}" for name in config.data.mix for key in of_data}


def default_values(config: Config) -> dict[str, Any]:
    """Return the options of a default run that has the same data sets as `config`."""
    values = dataclasses.asdict(Config())
    of_sets = dict.fromkeys(config.data.mix, DataConfig())
    values["data"]["mix"] = with_data_sets(config.data, of_sets).mix if of_sets else {}
    return values


def check_config(config: Config, num_processes: int) -> None:
    """Raise UserError for values that cannot work for a run of `num_processes` processes."""
    FOLDER_TO_WRITE.require("run_dir", config.run_dir)
    data_sets(config.data)
    if config.optimizer.warmup_steps > config.steps:
        raise UserError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} is more than the run's "
            f"steps={config.steps}: the rate would never be optimizer.lr"
        )
    model = config.model
    if not model.init or model.backbone != ModelConfig.backbone:
        require_network(model.backbone, model.image_size)
    if model.frozen_bn and not model.init:
        raise UserError(
            "model.frozen_bn=true keeps the batch statistics of the weights that training starts "
            "from, but model.init is empty, and those of random weights mean nothing: set "
            "model.frozen_bn=false, or use --config-name scratch"
        )
    check_weights(config.loss_weights)
    pieces = config.engine.accumulate * num_processes
    if config.batch_size % pieces:
        raise UserError(
            f"batch_size={config.batch_size} clips do not divide by {num_processes} processes "
            f"times engine.accumulate={config.engine.accumulate}"
        )
    if config.model.ghost_batch and not config.model.frozen_bn:
        _check_ghost_batch(config, config.batch_size // pieces)
    for name, count in counts_of_clips(config).items():
        _check_share(config, name, count, num_processes)


def counts_of_clips(config: Config) -> dict[str, int]:
    """Return the clips of each data set that are computed at a time, over all processes.

    They do not depend on the number of processes. Raises UserError if there are none of a data set.
    """
    contrast, data = config.objectives.time_contrastive, config.data
    multiple = math.lcm(data.mix_multiple, config.model.ghost_batch or 1, contrast.group or 1)
    num_clips = config.batch_size // config.engine.accumulate
    return clip_counts(weights(data), num_clips, multiple if data.mix else 1)


def _check_share(config: Config, name: str, count: int, num_processes: int) -> None:
    """Raise UserError if the processes cannot share the clips of a data set of a mixture."""
    unit = num_processes * (config.model.ghost_batch or 1)
    if name and count % unit:
        raise UserError(
            f"data.mix: the {count} clips of {name} in a batch do not divide by {num_processes} "
            f"processes{' times model.ghost_batch' if config.model.ghost_batch else ''}; set "
            f"data.mix_multiple={unit}"
        )


def _check_ghost_batch(config: Config, share: int) -> None:
    """share: the clips that one process computes at a time."""
    ghost, contrast = config.model.ghost_batch, config.objectives.time_contrastive
    if share % ghost:
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
    if config.loss_weights.get("state_contrast", 0) > 0:
        raise UserError(
            f"model.ghost_batch={ghost}: state contrast compares all clips of a batch, and the "
            "network could tell those of other ghost batches by their batch statistics; set "
            "model.ghost_batch=0, or loss_weights.state_contrast=0"
        )
