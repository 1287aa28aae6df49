"""The example in full: policies on several inputs, trained and tried by robomimic, in one table.

Behaviour cloning, without and with an LSTM, on Lift: a frozen encoder in the training loop, the
same with its features cached, an untrained encoder, no pictures at all, and robomimic's own
ResNet-18 learning from scratch. Called by scripts/robomimic_example.py.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcr.downstream.results import wilson_interval
from mcr.downstream.robomimic.cached_features import write_features
from mcr.downstream.robomimic.demonstrations import record_lift
from mcr.downstream.robomimic.training import merge, read_config, read_progress
from mcr.errors import UserError
from mcr.models.untrained import write_untrained, write_untrained_like

Config = dict[str, Any]  # robomimic's, or changes to it

UNTRAINED = ("resnet18", 64)  # network and pixels when there is no encoder to be like
CACHED = ", features cached"
_TRAIN = """
import sys
from mcr.downstream.robomimic.training import read_config, train
train(read_config(sys.argv[1]))
"""
_ALGORITHMS: dict[str, Config] = {
    "BC": {},
    "BC-RNN": {
        "train": {"seq_length": 5, "batch_size": 8},
        "algo": {"rnn": {"enabled": True, "horizon": 5, "hidden_dim": 256}},
    },
}


@dataclass(frozen=True)
class Scale:
    """How much to do: demonstrations, epochs of how many gradient steps, rollouts at the end."""

    demonstrations: int = 40
    epochs: int = 10
    steps: int = 100
    rollouts: int = 20


@dataclass(frozen=True)
class Outcome:
    """A row of the table: what the policy sees, median seconds per epoch, last loss, successes."""

    algorithm: str
    input: str
    epoch_s: float
    loss: float
    successes: int
    rollouts: int


def compare(
    folder: str | Path,
    config: str | Path,
    weights: str | None = None,
    scale: Scale | None = None,
    processes: int = 2,
) -> list[Outcome]:
    """Record, cache features, train and try all policies; print the table and return its rows.

    folder:    must not exist; holds data sets, configs, runs and logs afterwards
    config:    robomimic's JSON of what the policies share
    weights:   what `load_model` reads; None = only the untrained encoder takes part
    processes: runs at a time, of two threads and about 2 GB each
    """
    folder, scale = Path(folder).resolve(), scale or Scale()
    if folder.exists():
        raise UserError(f"{folder} exists: give another folder or delete it")
    shared = merge(read_config(config), _scaled(scale, folder))
    low_dim = shared["observation"]["modalities"]["obs"]["low_dim"]
    folder.mkdir(parents=True)
    untrained = folder / "untrained.pt"
    if weights:
        write_untrained_like(untrained, weights)
    else:
        write_untrained(untrained, *UNTRAINED)
    encoders = {"untrained encoder": str(untrained)}
    if weights:
        encoders["encoder"] = weights
    print(f"recording {scale.demonstrations} demonstrations", flush=True)
    record_lift(folder / "lift.hdf5", scale.demonstrations)
    configs = {
        (algorithm, name): merge(merge(shared, changes), _ALGORITHMS[algorithm])
        for name, changes in _inputs(folder, encoders, low_dim).items()
        for algorithm in _ALGORITHMS
    }
    with ThreadPoolExecutor(processes) as pool:  # of processes that train
        runs = [pool.submit(_run, folder, *key, config) for key, config in configs.items()]
        outcomes = [run.result() for run in runs]
    print("\n" + format_table(outcomes))
    return outcomes


def _scaled(scale: Scale, folder: Path) -> Config:
    return {
        "experiment": {
            "epoch_every_n_steps": scale.steps,
            "rollout": {"n": scale.rollouts, "rate": scale.epochs},
            "save": {"every_n_epochs": scale.epochs},
        },
        "train": {
            "data": str(folder / "lift.hdf5"),
            "output_dir": str(folder / "runs"),
            "num_epochs": scale.epochs,
        },
    }


def _inputs(folder: Path, encoders: dict[str, str], low_dim: list[str]) -> dict[str, Config]:
    """What a policy sees beside proprioception, `low_dim` -> changes to the config.

    Caches the features of the encoders, given by name; the last one also sees pictures in the loop.
    """
    data = folder / "lift.hdf5"
    inputs = {"nothing else": _see_low_dim(low_dim, data)}
    for name, weights in encoders.items():
        print(f"computing the features of the {name}", flush=True)
        cached = folder / f"lift_{name.replace(' ', '_')}.hdf5"
        features = write_features(data, cached, weights)
        inputs[name + CACHED] = _see_low_dim([*low_dim, *features], cached)
    inputs[name] = _see_pictures("EncoderConv", {"weights": weights, "freeze": True})
    # as robomimic's defaults are
    pooled = {"pool_class": "SpatialSoftmax", "feature_dimension": 64}
    inputs["ResNet18Conv from scratch"] = _see_pictures(
        "ResNet18Conv", {"pretrained": False}, pooled
    )
    return inputs


def _see_low_dim(keys: list[str], data: Path) -> Config:
    return {
        "train": {"data": str(data), "hdf5_cache_mode": "all", "num_data_workers": 0},
        "observation": {"modalities": {"obs": {"low_dim": keys, "rgb": []}}},
    }


def _see_pictures(backbone: str, kwargs: Config, core_kwargs: Config | None = None) -> Config:
    core = {"backbone_class": backbone, "backbone_kwargs": kwargs, **(core_kwargs or {})}
    return {"observation": {"encoder": {"rgb": {"core_kwargs": core}}}}


def _run(folder: Path, algorithm: str, name: str, config: Config) -> Outcome:
    """Train and try in a process of its own, as from the command line."""
    slug = f"{algorithm} {name}".lower().replace(",", "").replace(" ", "_")
    config = merge(config, {"experiment": {"name": slug}})
    path, log = folder / f"{slug}.json", folder / f"{slug}.log"
    path.write_text(json.dumps(config, indent=4))
    # robomimic asks torch for two threads, however many runs share the cores: they must not spin
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", _TRAIN, str(path)]
    with log.open("w") as file:
        result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if result.returncode:
        last = log.read_text().rstrip().splitlines()[-1:]
        raise UserError(f"{algorithm} on {name} failed: {' '.join(last)}; see {log}")
    (run,) = (path.parent for path in (folder / "runs" / slug).glob("*/logs"))
    progress, rollouts = read_progress(run), config["experiment"]["rollout"]["n"]
    (share,) = progress.success.values()
    outcome = Outcome(
        algorithm,
        name,
        epoch_s=statistics.median(progress.epoch_s.values()),
        loss=progress.loss[max(progress.loss)],
        successes=round(share * rollouts),
        rollouts=rollouts,
    )
    print(f"{algorithm} on {name}: {outcome.successes} of {rollouts} rollouts succeed", flush=True)
    return outcome


def format_table(outcomes: list[Outcome]) -> str:
    """A row each; success with its 95% interval; how much faster epochs on cached features are."""
    lines = [f"{'policy':8}{'sees proprioception and':36}{'s/epoch':>8}{'loss':>9}{'success':>22}"]
    for row in outcomes:
        low, high = wilson_interval(row.successes, row.rollouts)
        success = f"{row.successes}/{row.rollouts} ({low:.0%} to {high:.0%})"
        lines.append(
            f"{row.algorithm:8}{row.input:36}{row.epoch_s:8.2f}{row.loss:9.4f}{success:>22}"
        )
    seconds = {(row.algorithm, row.input): row.epoch_s for row in outcomes}
    for (algorithm, name), cached_s in seconds.items():
        looped_s = seconds.get((algorithm, name.removesuffix(CACHED)))
        if name.endswith(CACHED) and looped_s:
            ratio = looped_s / cached_s
            lines.append(
                f"{algorithm}, {name}: epochs are {ratio:.0f} times as fast as in the loop"
            )
    return "\n".join(lines)
