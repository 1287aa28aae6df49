#!/usr/bin/env python
"""Calibrate simulated tasks: with how many demonstrations they tell encoders apart.

    python benchmarks/calibrate_tasks.py --out calibration
    python benchmarks/calibrate_tasks.py robosuite/stack --demonstrations 50 100 --rollouts 10

A task on which every policy fails, or every policy succeeds, says nothing about encoders. So two
policies that see no pictures are tried before any encoder is: one sees the true state of the scene,
the other sees proprioception alone. A task is usable with the smallest number of demonstrations,
and then the shortest horizon, with which the first reaches 70% and the second at most 50%.

Demonstrations, scenes, policies and training are those of `mcr evaluate`. What both policies see is
standardised by the demonstrations and clipped at three standard deviations: an object that is
bumped into tilts by tens of them, and an unclipped policy then does anything. Nothing is rendered.
The looks of a scene change nothing for these policies, and its objects lie where they lie in the
evaluation.

    <out>/calibration.csv   a row per task, number of demonstrations, horizon and policy
          demonstrations/   <task>.hdf5: state, proprioception and action of every step

The same command again continues. Measured on two cores, shared: robosuite 20 steps a second,
MetaWorld 100 to 300.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy.stats import binomtest

from mcr.evaluation.results import versions
from mcr.policies.ensemble import EnsembleConfig, train_policies
from mcr.runs.atomic import atomic_path
from mcr.runs.processes import processor
from mcr.simulation.recorder import Demonstration, write_demonstrations
from mcr.simulation.rollouts import run_rollouts
from mcr.simulation.simulator import Observation, PictureConfig
from mcr.simulation.tasks import make_simulator

CANDIDATES = (
    "robosuite/stack",
    "robosuite/can",
    "robosuite/square",
    "metaworld/assembly",
    "metaworld/shelf-place",
    "metaworld/pick-place-wall",
    "metaworld/bin-picking",
)
STATE, PROPRIOCEPTION = "state", "proprioception"
LEAST_WITH_STATE, MOST_WITHOUT = 0.7, 0.5
NO_PICTURES = PictureConfig(picture_size=0, looks="varied")
NOISE, SIMULATORS = 0.1, 8  # as in the evaluation
CLIP_STD, LEAST_STD = 3, 0.01  # metres, entries of a rotation matrix, or of the opening 0..1


@dataclass(frozen=True)
class Setting:
    """What is tried: which signal the policies see, and how much they get."""

    task: str
    sees: str
    demonstrations: int
    horizon: int
    seeds: int
    rollouts: int
    policy: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", default=CANDIDATES)
    parser.add_argument("--demonstrations", nargs="+", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--horizons", nargs="+", type=int, default=[0], help="0 = the task's own")
    parser.add_argument("--seeds", type=int, default=3, help="policies of each kind")
    parser.add_argument("--rollouts", type=int, default=50, help="of each policy")
    parser.add_argument("--hidden", nargs="+", type=int, default=[256, 256, 256])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1, help="of simulators; 0 = one per core")
    parser.add_argument("--out", type=Path, default=Path("calibration"))
    options = parser.parse_args()
    config = EnsembleConfig(
        hidden=options.hidden,
        dropout=options.dropout,
        chunk=options.chunk,
        epochs=options.epochs,
        feature_norm="none",
    )
    for task in options.tasks:
        calibrate(task, config, options)


def calibrate(task: str, config: EnsembleConfig, options: argparse.Namespace) -> None:
    """Try numbers of demonstrations and horizons in ascending order until the task is usable."""
    for count in sorted(options.demonstrations):
        for horizon in options.horizons:
            rates = {}
            for sees in (STATE, PROPRIOCEPTION):
                setting = Setting(
                    task,
                    sees,
                    count,
                    horizon or make_horizon(task),
                    options.seeds,
                    options.rollouts,
                    describe(config),
                )
                rates[sees] = measure(setting, config, options)
                if sees == STATE and rates[sees] < LEAST_WITH_STATE:
                    break
            else:
                verdict = rates[PROPRIOCEPTION] <= MOST_WITHOUT
                print(f"{task}: {'usable' if verdict else 'too easy'}", flush=True)
                return
    print(f"{task}: too hard", flush=True)


def describe(config: EnsembleConfig) -> str:
    return (
        f"clip {CLIP_STD}, hidden {' '.join(map(str, config.hidden))}, dropout {config.dropout:g}, "
        f"chunk {config.chunk}, epochs {config.epochs}"
    )


def make_horizon(task: str) -> int:
    simulator = make_simulator(task, NO_PICTURES)
    try:
        return simulator.horizon
    finally:
        simulator.close()


def measure(setting: Setting, config: EnsembleConfig, options: argparse.Namespace) -> float:
    """The success rate of a setting, from the table or by training and trying its policies."""
    path = options.out / "calibration.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    known = table
    for name, value in vars(setting).items():
        known = known[known[name] == value] if len(known) else known
    if len(known):
        return float(known.iloc[0]["successes"] / known.iloc[0]["trials"])
    successes = try_policies(setting, config, options)
    won, trials = int(successes.sum()), successes.size
    low, high = binomtest(won, trials).proportion_ci(method="wilson")
    row = vars(setting) | {
        "successes": won,
        "trials": trials,
        "rate": round(won / trials, 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "of_seeds": " ".join(map(str, successes.sum(axis=1))),
        "versions": versions(),
        "hardware": processor(),
    }
    with atomic_path(path) as partial:
        pd.concat([table, pd.DataFrame([row])]).to_csv(partial, index=False)
    print(
        f"{setting.task}, {setting.demonstrations} demonstrations, {setting.horizon} steps, "
        f"{setting.sees}: {won}/{trials}",
        flush=True,
    )
    return won / trials


def try_policies(
    setting: Setting, config: EnsembleConfig, options: argparse.Namespace
) -> np.ndarray:
    """Train and try the policies: bool [seeds, rollouts]."""
    path = recorded(setting.task, max(options.demonstrations), options.out)
    signals, actions, lengths = read(path, setting.sees, setting.demonstrations)
    mean, std = signals.mean(axis=0), signals.std(axis=0).clip(LEAST_STD)

    def seen(signals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What policies get in the place of features, and no low-dimensional signals."""
        return ((signals - mean) / std).clip(-CLIP_STD, CLIP_STD), signals[:, :0]

    policies = train_policies(*seen(signals), actions, config, range(setting.seeds), lengths)

    def act(chosen: np.ndarray, observation: Observation) -> np.ndarray:
        return policies.act(chosen, *seen(observation[setting.sees]))

    slots = [(seed, scene) for scene in range(setting.rollouts) for seed in range(setting.seeds)]
    successes = run_rollouts(
        setting.task,
        act,
        slots,
        options.processes,
        SIMULATORS,
        NO_PICTURES,
        setting.horizon,
        full_state=True,
    )
    return successes.reshape(setting.rollouts, setting.seeds).T


def recorded(task: str, count: int, out: Path) -> Path:
    """The task's demonstrations, of which smaller numbers are the first ones."""
    path = out / "demonstrations" / f"{task.replace('/', '_')}_{count}.hdf5"
    if not path.exists():
        simulator = make_simulator(task, NO_PICTURES)
        about = {"task": task, "noise": NOISE, "seed": 0}
        write_demonstrations(simulator, path, write, about, count, NOISE, seed=0)
    return path


def write(group: h5py.Group, made: Demonstration) -> None:
    group[STATE] = np.stack(made.states)
    group[PROPRIOCEPTION] = np.stack([seen[PROPRIOCEPTION] for seen in made.observations[:-1]])
    group["actions"] = np.stack(made.actions)


def read(path: Path, sees: str, count: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A signal [N, P] and the actions [N, A] of the first demonstrations, and their lengths."""
    with h5py.File(path) as file:
        demos = [file[f"data/demo_{number}"] for number in range(count)]
        signals, actions = ([demo[key][()] for demo in demos] for key in (sees, "actions"))
    return np.concatenate(signals), np.concatenate(actions), [len(each) for each in actions]


if __name__ == "__main__":
    main()
