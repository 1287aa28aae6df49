"""The robomimic example: policies on several inputs, trained and tried by robomimic, in one table.

The task is Lift, the algorithm behaviour cloning without and with an LSTM. The inputs are a frozen
encoder in the training loop, its cached features, those of an untrained encoder, no pictures, and
robomimic's own ResNet-18 learning from scratch. Called by scripts/robomimic_example.py.

All policies of an algorithm are trained with the same number of gradient steps. Policies that would
take too long on a CPU, or whose result is known from another one, are only timed.
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
    """How long policies are trained and tried.

    bc_epochs, rnn_epochs: of BC and BC-RNN
    steps:       gradient steps of an epoch
    rollouts:    after the last epoch
    timed_steps: gradient steps of an epoch of a policy that is only timed
    everything:  train and try all policies; time none of them only
    """

    demonstrations: int = 40
    bc_epochs: int = 10
    rnn_epochs: int = 20
    steps: int = 100
    rollouts: int = 20
    timed_steps: int = 5
    everything: bool = False

    def length(self, algorithm: str, name: str) -> Config:
        """How long this policy is trained and tried, as changes to the config."""
        # A policy on a frozen encoder in the loop learns the same as one on its cached features.
        # A step of BC-RNN encodes ten times as many pictures as a step of BC.
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
    """A row of the table.

    input:     what the policy sees besides proprioception
    steps:     gradient steps
    step_s:    seconds of one of them
    loss:      training loss of the last epoch
    successes: of the rollouts
    rollouts:  0 if the policy was only timed
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
    """Record demonstrations, cache features, train and try all policies. Prints the table.

    folder:    must not exist; for data sets, configs, runs and logs
    config:    robomimic's JSON with what the policies share
    weights:   of the encoder, as `load_model` takes them; None = compare only an untrained one
    processes: runs at a time; each takes two threads and about 2 GB
    returns:   the rows of the table
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
        (algorithm, name): functools.reduce(
            merge, [shared, changes, own, scale.length(algorithm, name)]
        )
        for name, changes in _inputs(folder, encoders, low_dim).items()
        for algorithm, own in _ALGORITHMS.items()
    }
    with ThreadPoolExecutor(processes) as pool:  # of processes that train
        runs = [pool.submit(_run, folder, *key, config) for key, config in configs.items()]
        rows = [run.result() for run in runs]
    print("\n" + format_table(rows))
    return rows


def _inputs(folder: Path, encoders: dict[str, str], low_dim: list[str]) -> dict[str, Config]:
    """Changes to the config for each input, by what it adds to the proprioception `low_dim`.

    Computes the features of all encoders. The last encoder is also an input in the training loop.
    """
    data = folder / "lift.hdf5"
    inputs = {"nothing else": _see_low_dim(low_dim, data)}
    for name, weights in encoders.items():
        print(f"computing the features of the {name}", flush=True)
        cached = folder / f"lift_{name.replace(' ', '_')}.hdf5"
        features = write_features(data, cached, weights)
        inputs[name + CACHED] = _see_low_dim([*low_dim, *features], cached)
    inputs[name + LOOPED] = _see_pictures("EncoderConv", {"weights": weights, "freeze": True})
    # These are robomimic's defaults.
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
    """Train and try one policy in a process of its own, as the command line does."""
    slug = f"{algorithm} {name}".lower().replace(",", "").replace(" ", "_")
    config = merge(config, {"experiment": {"name": slug}})
    path, log = folder / f"{slug}.json", folder / f"{slug}.log"
    path.write_text(json.dumps(config, indent=4))
    # robomimic gives torch two threads however many runs share the cores, so threads that wait must
    # not keep a core busy.
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
    row = TableRow(
        algorithm,
        name,
        steps=steps * len(progress.loss),
        step_s=statistics.median(progress.epoch_s.values()) / steps,
        loss=progress.loss[max(progress.loss)],
        successes=round(sum(progress.success.values()) * rollouts),  # only the last epoch has some
        rollouts=rollouts,
    )
    print(f"{algorithm} on {name}: {_success(row)}", flush=True)
    return row


def format_table(rows: list[TableRow]) -> str:
    """The table as text, and how many times faster a step is on cached features."""
    lines = [
        f"{'policy':8}{'sees proprioception and':36}{'steps':>7}{'ms/step':>9}{'loss':>9}"
        f"{'success':>22}"
    ]
    for row in rows:
        lines.append(
            f"{row.algorithm:8}{row.input:36}{row.steps:7}{1000 * row.step_s:9.1f}{row.loss:9.4f}"
            f"{_success(row):>22}"
        )
    seconds = {(row.algorithm, row.input): row.step_s for row in rows}
    for (algorithm, name), cached_s in seconds.items():
        looped_s = seconds.get((algorithm, name.removesuffix(CACHED) + LOOPED))
        if name.endswith(CACHED) and looped_s:
            ratio = looped_s / cached_s
            lines.append(f"{algorithm}, {name}: steps are {ratio:.0f} times as fast as in the loop")
    return "\n".join(lines)


def _success(row: TableRow) -> str:
    """Successes, with the 95% interval of the success rate."""
    if not row.rollouts:
        return "only timed"
    low, high = binomtest(row.successes, row.rollouts).proportion_ci(method="wilson")
    return f"{row.successes}/{row.rollouts} ({low:.0%} to {high:.0%})"
