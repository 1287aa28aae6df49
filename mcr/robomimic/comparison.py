"""The example in full: policies on several inputs, trained and tried by robomimic, in one table.

Behaviour cloning, without and with an LSTM, on Lift: a frozen encoder in the training loop, the
same with its features cached, an untrained encoder, no pictures at all, and robomimic's own
ResNet-18 learning from scratch. Called by scripts/robomimic_example.py.

All policies of an algorithm get the same number of gradient steps, but for those that a CPU cannot
afford or that say nothing new: they are only timed.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from mcr.errors import UserError
from mcr.models.untrained import write_untrained, write_untrained_like
from mcr.robomimic.cached_features import write_features
from mcr.robomimic.demonstrations import record_lift
from mcr.robomimic.training import merge, read_config, read_progress

Config = dict[str, Any]  # robomimic's, or changes to it

UNTRAINED = ("resnet18", 64)  # network and pixels when there is no encoder to be like
CACHED, LOOPED = ", features cached", ", in the loop"
SCRATCH = "ResNet18Conv from scratch"
_TRAIN = """
import sys
from mcr.robomimic.training import read_config, train
train(read_config(sys.argv[1]))
"""
_ALGORITHMS: dict[str, Config] = {
    "BC": {},
    "BC-RNN": {
        "train": {"seq_length": 10},
        "algo": {"rnn": {"enabled": True, "horizon": 10, "hidden_dim": 256}},
    },
}


@dataclass(frozen=True)
class Scale:
    """How much to do: epochs of how many gradient steps, rollouts at the end.

    timed_steps: of an epoch where a policy is only timed
    everything:  no policy is; all are trained and tried
    """

    demonstrations: int = 40
    bc_epochs: int = 10
    rnn_epochs: int = 20
    steps: int = 100
    rollouts: int = 20
    timed_steps: int = 5
    everything: bool = False

    def length(self, algorithm: str, name: str) -> Config:
        """How long a policy is trained and tried, as changes to the config."""
        # On a frozen encoder in the loop a policy is that on its cached features; and in a step
        # BC-RNN sees ten times as many pictures as BC.
        dear = name.endswith(LOOPED) or (algorithm, name) == ("BC-RNN", SCRATCH)
        if dear and not self.everything:
            return _length(epochs=3, steps=self.timed_steps, rollouts=0)
        epochs = {"BC": self.bc_epochs, "BC-RNN": self.rnn_epochs}[algorithm]
        return _length(epochs, self.steps, self.rollouts)


def _length(epochs: int, steps: int, rollouts: int) -> Config:
    return {
        "experiment": {
            "epoch_every_n_steps": steps,
            "validation_epoch_every_n_steps": min(5, steps),
            "rollout": {"enabled": rollouts > 0, "n": rollouts, "rate": epochs},
            "save": {"every_n_epochs": epochs},
        },
        "train": {"num_epochs": epochs},
    }


@dataclass(frozen=True)
class TableRow:
    """A row of the table: what the policy sees, gradient steps and the seconds of one, last loss.

    rollouts: 0 if the policy was only timed
    """

    algorithm: str
    input: str
    steps: int
    step_s: float
    loss: float
    successes: int
    rollouts: int


def compare(
    folder: str | Path,
    config: str | Path,
    weights: str | None = None,
    scale: Scale | None = None,
    processes: int = 2,
) -> list[TableRow]:
    """Record, cache features, train and try all policies; print the table and return its rows.

    folder:    must not exist; holds data sets, configs, runs and logs afterwards
    config:    robomimic's JSON of what the policies share
    weights:   what `load_model` reads; None = only the untrained encoder takes part
    processes: runs at a time, of two threads and about 2 GB each
    """
    folder, scale = Path(folder).resolve(), scale or Scale()
    if folder.exists():
        raise UserError(f"{folder} exists: give another folder or delete it")
    places = {"data": str(folder / "lift.hdf5"), "output_dir": str(folder / "runs")}
    shared = merge(read_config(config), {"train": places})
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
        (algorithm, name): _merge(shared, changes, own, scale.length(algorithm, name))
        for name, changes in _inputs(folder, encoders, low_dim).items()
        for algorithm, own in _ALGORITHMS.items()
    }
    with ThreadPoolExecutor(processes) as pool:  # of processes that train
        runs = [pool.submit(_run, folder, *key, config) for key, config in configs.items()]
        outcomes = [run.result() for run in runs]
    print("\n" + format_table(outcomes))
    return outcomes


def _merge(*configs: Config) -> Config:
    return functools.reduce(merge, configs)


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
    inputs[name + LOOPED] = _see_pictures("EncoderConv", {"weights": weights, "freeze": True})
    # as robomimic's defaults are
    pooled = {"pool_class": "SpatialSoftmax", "feature_dimension": 64}
    inputs[SCRATCH] = _see_pictures("ResNet18Conv", {"pretrained": False}, pooled)
    return inputs


def _see_low_dim(keys: list[str], data: Path) -> Config:
    return {
        "train": {"data": str(data), "hdf5_cache_mode": "all", "num_data_workers": 0},
        "observation": {"modalities": {"obs": {"low_dim": keys, "rgb": []}}},
    }


def _see_pictures(backbone: str, kwargs: Config, core_kwargs: Config | None = None) -> Config:
    core = {"backbone_class": backbone, "backbone_kwargs": kwargs, **(core_kwargs or {})}
    return {"observation": {"encoder": {"rgb": {"core_kwargs": core}}}}


def _run(folder: Path, algorithm: str, name: str, config: Config) -> TableRow:
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
    progress, experiment = read_progress(run), config["experiment"]
    steps, rollouts = experiment["epoch_every_n_steps"], experiment["rollout"]["n"]
    outcome = TableRow(
        algorithm,
        name,
        steps=steps * len(progress.loss),
        step_s=statistics.median(progress.epoch_s.values()) / steps,
        loss=progress.loss[max(progress.loss)],
        successes=round(sum(progress.success.values()) * rollouts),  # tried once, at the end
        rollouts=rollouts,
    )
    print(f"{algorithm} on {name}: {_success(outcome)}", flush=True)
    return outcome


def format_table(outcomes: list[TableRow]) -> str:
    """A row each; how much faster steps on cached features are."""
    lines = [
        f"{'policy':8}{'sees proprioception and':36}{'steps':>7}{'ms/step':>9}{'loss':>9}"
        f"{'success':>22}"
    ]
    for row in outcomes:
        lines.append(
            f"{row.algorithm:8}{row.input:36}{row.steps:7}{1000 * row.step_s:9.1f}{row.loss:9.4f}"
            f"{_success(row):>22}"
        )
    seconds = {(row.algorithm, row.input): row.step_s for row in outcomes}
    for (algorithm, name), cached_s in seconds.items():
        looped_s = seconds.get((algorithm, name.removesuffix(CACHED) + LOOPED))
        if name.endswith(CACHED) and looped_s:
            ratio = looped_s / cached_s
            lines.append(f"{algorithm}, {name}: steps are {ratio:.0f} times as fast as in the loop")
    return "\n".join(lines)


def _success(row: TableRow) -> str:
    """Successes with the rate's 95% interval."""
    if not row.rollouts:
        return "only timed"
    low, high = binomtest(row.successes, row.rollouts).proportion_ci(method="wilson")
    return f"{row.successes}/{row.rollouts} ({low:.0%} to {high:.0%})"
