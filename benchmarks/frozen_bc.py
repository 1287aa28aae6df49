#!/usr/bin/env python
"""Time of a training step of behaviour cloning: cached features, frozen encoder, learning encoder.

    python benchmarks/frozen_bc.py [--backbone resnet18] [--image-size 224] [--batch-size 64]

Steps are those of `mcr bc` from end to end: a batch's pictures or features are read from
their mapped file, go through the observation encoder (2-layer projection, batch normalisation) and
the policy, backwards, and through Adam. The three ways take turns in one process with one thread,
on the embedded sample data, one camera; the best round of each is kept. Weights are random: time
does not depend on them. The cache is computed here too, by all cores, and the last column is of a
whole training that begins without it: the same steps with the encoder in the loop, over the cache's
time and all steps. Prints a Markdown table; about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mcr.models.fine_tuning import count_parameters
from mcr.models.untrained import write_untrained
from mcr.policies.behaviour_cloning import Cloning
from mcr.policies.config import Config
from mcr.policies.demonstrations import DemonstrationConfig
from mcr.policies.network import PolicyConfig
from mcr.policies.observation_encoder import ObservationConfig
from mcr.runs.processes import processor

SOURCE = Path(__file__).parents[1] / "resources/sample_droid/1.0.0"
CACHED, FROZEN, LEARNING = "features cached", "frozen, in the loop", "learning, in the loop"
# freeze_encoder, cache_features
WAYS = {CACHED: (True, True), FROZEN: (True, False), LEARNING: (False, True)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=100, help="of the whole training")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; default: a GPU if any")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other would blur the CPU's times
    with tempfile.TemporaryDirectory() as folder:
        runs, seconds_of_cache = prepare(Path(folder), options)
        device = runs[CACHED].device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        print(f"hardware: {where}; torch {torch.__version__}", file=sys.stderr)
        times = measure(runs, options.batch_size, options.rounds)
        report(runs, times, seconds_of_cache, options)


def prepare(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Cloning], float]:
    """A run of each way, ready to make steps; seconds that the cache took."""
    data = shutil.copytree(SOURCE, folder / "1.0.0")  # an index will lie beside it
    weights = write_untrained(folder / "encoder.pt", options.backbone, options.image_size)
    runs, seconds = {}, {}
    for name, (frozen, cached) in WAYS.items():
        config = Config(
            demonstrations=DemonstrationConfig(str(data), cameras=["exterior_image_1_left"]),
            observations=ObservationConfig(
                encoder=str(weights), freeze_encoder=frozen, feature_norm="batch_norm"
            ),
            policy=PolicyConfig(batch_size=options.batch_size),
            cache_features=cached,
            device=options.device,
            run_dir=str(folder / name),
        )
        (folder / name / "scratch").mkdir(parents=True)
        runs[name] = Cloning(config, folder / name / "scratch")
        began = time.perf_counter()
        runs[name].begin_stage()
        seconds[name] = time.perf_counter() - began
        runs[name].policy.train()
    return runs, seconds[CACHED]


def measure(
    runs: dict[str, Cloning], batch_size: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Seconds of the wall and of the processor per step; the best round of each way."""
    rng, best = np.random.default_rng(0), {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            count = 50 if name == CACHED else 1
            batches = [rng.choice(run.train_rows, batch_size) for _ in range(count)]
            found = tuple(seconds / count for seconds in timed(run, batches))
            if number:  # the first round warms up
                best[name] = min(best.get(name, found), found)
    return best


def timed(run: Cloning, batches: list[np.ndarray]) -> tuple[float, float]:
    began, cpu_began = time.perf_counter(), time.process_time()
    for rows in batches:
        loss = run.step(rows)
    loss.item()  # waits for a GPU
    return time.perf_counter() - began, time.process_time() - cpu_began


def report(
    runs: dict[str, Cloning],
    times: dict[str, tuple[float, float]],
    seconds_of_cache: float,
    options: argparse.Namespace,
) -> None:
    num_samples = len(runs[CACHED].train_rows)
    num_steps = options.epochs * -(-num_samples // options.batch_size)
    base_wall, base_cpu = times[FROZEN]
    print(
        f"{options.backbone}, {options.image_size} px, batches of {options.batch_size}; cache of "
        f"{sum(runs[CACHED].demonstrations.recordings.lengths)} frames: {seconds_of_cache:.1f} s; "
        f"whole training: {options.epochs} epochs of {num_samples} steps\n"
    )
    print("| way | parameters trainable | wall ms/step | ratio | CPU ms/step | ratio | whole |")
    print("|---|---|---|---|---|---|---|")
    for name, (wall, cpu) in times.items():
        count = count_parameters(runs[name].policy.observations)
        whole = num_steps * wall + (seconds_of_cache if name == CACHED else 0)
        print(
            f"| {name} | {count.trainable:,} / {count.total:,} | {1e3 * wall:.2f} | "
            f"{base_wall / wall:.1f} | {1e3 * cpu:.2f} | {base_cpu / cpu:.1f} | "
            f"{num_steps * base_wall / whole:.1f} |"
        )


if __name__ == "__main__":
    main()
