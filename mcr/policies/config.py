"""The config of a behaviour cloning run, and how its options were called in earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from mcr.errors import UserError
from mcr.policies.demonstrations import DemonstrationConfig
from mcr.policies.network import PolicyConfig
from mcr.policies.observation_encoder import ObservationConfig
from mcr.runs.options import RESUME
from mcr.runs.ranges import (
    ANY_TEXT,
    DEVICE_OR_AUTO,
    FOLDER_TO_WRITE,
    NAME,
    SEED,
    check_fields,
    choice,
    number,
    whole,
)


@dataclass
class Config:
    """One run.

    demonstrations: what the policy learns from
    observations:   what becomes of pictures and signals
    policy:         the network behind them, and how it is trained
    run_dir:        everything the run writes
    resume:         "auto" continues the run that `run_dir` holds; "never" refuses a used folder
    seed:           of random weights, order of samples, and crops
    device:         "auto" (a GPU if there is one), "cpu", "cuda", ...
    cache_features: compute the features of a frozen encoder once; random crops make it impossible
    feature_cache:  folder of the cache, which runs may share; "" = <run_dir>/features
    workers:        processes that compute the features; 0 = one per core
    encoder_lr_scale: learning rate of a pretrained encoder that learns, as a share of the policy's;
                    an untrained one learns at the policy's own rate
    fine_tune_epochs: epochs of the second stage, in which the encoder learns; 0 = no such stage
    fine_tune_learning_rate: of the second stage
    fine_tune_stages: how many of the encoder's stages learn then, from its output on; 0 = all
    unfreeze_every: epochs after which one more stage learns; 0 = all of them at once
    validate_every, save_every: in epochs
    """

    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    observations: ObservationConfig = field(default_factory=ObservationConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    run_dir: Annotated[str, NAME] = "runs/bc"
    resume: Annotated[str, choice(RESUME)] = "auto"
    seed: Annotated[int, SEED] = 0
    device: Annotated[str, DEVICE_OR_AUTO] = "auto"
    cache_features: bool = True
    feature_cache: Annotated[str, ANY_TEXT] = ""
    workers: Annotated[int, whole(0, 1024)] = 0
    encoder_lr_scale: Annotated[float, number(above=0)] = 0.1
    fine_tune_epochs: Annotated[int, whole(0)] = 0
    fine_tune_learning_rate: Annotated[float, number(above=0)] = 1e-4
    fine_tune_stages: Annotated[int, whole(0)] = 0
    unfreeze_every: Annotated[int, whole(0)] = 0
    validate_every: Annotated[int, whole(1)] = 1
    save_every: Annotated[int, whole(1)] = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if self.fine_tune_epochs and not self.observations.freeze_encoder:
            raise UserError(
                "fine_tune_epochs is a stage that follows one with a frozen encoder: leave out "
                "observations.freeze_encoder=False"
            )

    @property
    def num_epochs(self) -> int:
        """Epochs of both stages."""
        return self.policy.epochs + self.fine_tune_epochs


def check_config(config: Config) -> None:
    """Raise UserError for what cannot work, as far as it is known before the data are opened."""
    FOLDER_TO_WRITE.require("run_dir", config.run_dir)
    if config.feature_cache:
        FOLDER_TO_WRITE.require("feature_cache", config.feature_cache)
    if not config.demonstrations.data:
        raise UserError(
            "demonstrations.data is not set: give a data set of any format that docs/data.md names"
        )


# A run may be continued with other values of these: they change how it is done, not its result.
FREE_TO_CHANGE = (
    "run_dir",
    "resume",
    "device",
    "feature_cache",
    "workers",
    "validate_every",
    "save_every",
)

# Keys of earlier versions, in which the config was flat -> today's.
_PARTS = {
    "demonstrations": (
        *("data", "cameras", "low_dim", "proprioception"),
        *("action_space", "rotation", "val_fraction"),
    ),
    "observations": (
        *("encoder", "pretrained_encoder", "rgb_model_name", "image_size", "normalisation"),
        *("freeze_encoder", "share_encoder", "grad_checkpointing", "crops", "pooling"),
        *("feature_norm", "emb_dim"),
    ),
    "policy": (
        *("head", "modes", "chunk", "hidden", "dropout", "standardise_actions"),
        *("learning_rate", "batch_size", "epochs"),
    ),
}
RENAMED = {key: f"{part}.{key}" for part, keys in _PARTS.items() for key in keys}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config of an earlier version, as a dictionary of today's form."""
    nested: dict[str, Any] = {part: {} for part in _PARTS}
    for key, value in flat.items():
        part, _, name = RENAMED.get(key, key).rpartition(".")
        (nested[part] if part else nested)[name] = value
    return nested
