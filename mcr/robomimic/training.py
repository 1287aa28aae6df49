"""robomimic's own training, as its script runs it, with our backbones registered.

`python -m robomimic.scripts.train` does not know our backbones, asks questions on the terminal and
exits with code 0 even after an error. scripts/train_robomimic.py and `comparison` therefore call
`train`. The loop, the algorithms and the rollouts are robomimic's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robomimic.config import config_factory
from robomimic.scripts.train import train as train_by_robomimic
from robomimic.utils.log_utils import PrintLogger
from robomimic.utils.torch_utils import get_torch_device
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcr.errors import UserError, require_choice

ALGORITHMS = ("bc", "bcq", "cql", "gl", "hbc", "iql", "iris", "td3_bc")


@dataclass(frozen=True)
class Progress:
    """What robomimic logged of a run, by epoch (counted from 1).

    epoch_s: seconds of training, without validation and rollouts
    loss:    training loss
    success: share of rollouts that succeeded, for the epochs that had rollouts
    """

    epoch_s: dict[int, float]
    loss: dict[int, float]
    success: dict[int, float]


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a robomimic config from JSON. Raises UserError if the file is none."""
    path = Path(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; cfgs/robomimic_bc_mcr.json is one") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or "algo_name" not in config:
        raise UserError(f"{path} is no robomimic config: it lacks algo_name")
    return config


def merge(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `changes`; both are nested dictionaries."""
    merged = dict(config)
    for key, value in changes.items():
        nested = isinstance(value, Mapping)
        merged[key] = merge(merged.get(key, {}), value) if nested else value
    return merged


def adjust(
    config: Mapping[str, Any],
    dataset: str | None = None,
    weights: str | None = None,
    output: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """`config` with another data set, encoder, folder of runs or name of the run, if given."""
    backbone = _given(weights=weights)
    return merge(
        config,
        {
            "train": _given(data=dataset, output_dir=output),
            "experiment": _given(name=name),
            "observation": {"encoder": {"rgb": {"core_kwargs": {"backbone_kwargs": backbone}}}},
        },
    )


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def train(config: Mapping[str, Any]) -> Path:
    """Train as `config` says. Returns the run's folder, which holds logs/, models/ and videos/.

    A relative `train.output_dir` is relative to the working directory.
    Raises UserError for keys that robomimic does not know, and if a run of this name exists.
    """
    settings = config_factory(require_choice("algo_name", config["algo_name"], ALGORITHMS))
    try:
        with settings.values_unlocked():
            settings.update(config)
            # Upstream: robomimic starts at its installation's folder, and asks before overwriting.
            settings.train.output_dir = str(Path(settings.train.output_dir).resolve())
    except RuntimeError as error:
        raise UserError(f"the config does not fit robomimic's: {error}") from error
    data, run = settings.train.data, Path(settings.train.output_dir, settings.experiment.name)
    if not data or not Path(data).expanduser().is_file():
        raise UserError(f"train.data={data}: there is no such data set")
    if run.exists():
        raise UserError(f"{run} exists: give experiment.name another value or delete it")
    settings.lock()
    stdout, stderr = sys.stdout, sys.stderr
    try:
        train_by_robomimic(settings, device=get_torch_device(try_to_use_cuda=settings.train.cuda))
    finally:
        # robomimic replaces sys.stdout by a logger and does not restore it.
        if isinstance(sys.stdout, PrintLogger):
            sys.stdout.log_file.close()
        sys.stdout, sys.stderr = stdout, stderr
    (stamped,) = (path.parent for path in run.glob("*/logs"))
    return stamped


def read_progress(run: Path) -> Progress:
    """Read the TensorBoard log in the folder that `train` returned."""
    log = EventAccumulator(str(run / "logs" / "tb"), size_guidance={"scalars": 0})
    log.Reload()

    def scalars(prefix: str, scale: float = 1.0) -> dict[int, float]:
        tags = [tag for tag in log.Tags()["scalars"] if tag.startswith(prefix)]
        tags = [tag for tag in tags if not tag.endswith(("-mean", "-std", "-min", "-max"))]
        return {event.step: event.value * scale for tag in tags for event in log.Scalars(tag)}

    return Progress(
        epoch_s=scalars("Timing_Stats/Train_Epoch", 60.0),  # robomimic logs minutes
        loss=scalars("Train/Loss"),
        success=scalars("Rollout/Success_Rate/"),
    )
