#!/usr/bin/env python
"""Seconds per step of LeRobot's policies on pictures and on cached features, in one run.

    python benchmarks/lerobot_features.py [--data DATA] [--backbone resnet18] [--steps 5]

Needs the extra `lerobot-policies`. DATA is a LeRobotDataset of video; the default is what LeRobot
wrote for the tests (two cameras, 180 x 320 and 96 x 128, AV1). Each row trains a policy by what
LeRobot's trainer does in a step: a batch from its data loader in this process, its preprocessor,
forward, backward, optimiser. The encoder is frozen. "pictures" decodes video by PyAV and runs the
encoder; "cached features" reads `mcr features`, whose time is printed, too. Rows of a policy are
measured in turn; the best round of each is kept. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.factory import make_policy, make_pre_post_processors
from torch.utils.data import DataLoader

from mcr.features.extraction import FeatureConfig, extract_features
from mcr.lerobot import make_dataset
from mcr.models.untrained import write_untrained
from mcr.runs.processes import num_cores, processor

REFERENCE = Path(__file__).parents[1] / "tests/data/reference/lerobot/lerobot_v3_video"
POLICIES = ("mcr_act", "mcr_diffusion")


def main() -> None:
    options = parse_arguments()
    print(
        f"hardware: {processor()}, {num_cores()} cores, device {options.device}; torch "
        f"{torch.__version__}; {options.backbone} at {options.image_size} px, batches of "
        f"{options.batch_size}",
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = shutil.copytree(options.data, folder / "data")
        weights = write_untrained(folder / "encoder.pt", options.backbone, options.image_size)
        begin = time.perf_counter()
        settings = FeatureConfig(output="spatial", device=options.device)
        cache = extract_features(weights, data, folder / "features", settings)
        print(f"features, once: {time.perf_counter() - begin:.1f} s for {len(cache.array)} steps")
        print("| policy | trained on | s/step | of it loading | speed-up |\n|---|---|---|---|---|")
        for kind in POLICIES:
            rows = {
                "pictures": prepare(kind, data, weights, "", options),
                "cached features": prepare(kind, data, weights, str(cache.path), options),
            }
            report(kind, rows, options)


def report(kind: str, rows: dict[str, Callable[[], Any]], options: argparse.Namespace) -> None:
    """Measure the rows in turn and print them."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(options.rounds):
        for name, step in rows.items():
            times = [step() for _ in range(options.steps)]
            mean = tuple(sum(column) / len(times) for column in zip(*times, strict=True))
            best[name] = min(best.get(name, mean), mean)
    for name, (total, loading) in best.items():
        speed_up = best["pictures"][0] / total
        print(f"| {kind} | {name} | {total:.3f} | {loading:.3f} | {speed_up:.1f} |", flush=True)


def prepare(
    kind: str, data: Path, weights: Path, features: str, options: argparse.Namespace
) -> Callable[[], tuple[float, float]]:
    """A step of training -> its seconds, and those of them that loading took. One is made now."""
    torch.manual_seed(0)
    config = PreTrainedConfig.get_choice_class(kind)(
        vision_backbone=str(weights),
        cached_features=features,
        device=options.device,
        push_to_hub=False,
    )
    source = DatasetConfig("local/data", root=str(data), video_backend="pyav")
    dataset = make_dataset(TrainPipelineConfig(dataset=source, policy=config))
    policy = make_policy(config, ds_meta=dataset.meta).train()
    preprocess, _ = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    loader = DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> tuple[float, float]:
        begin = time.perf_counter()
        batch = preprocess(next(batches))
        loaded = time.perf_counter()
        policy.forward(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        if options.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begin, loaded - begin

    step()
    return step


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=REFERENCE, help="a LeRobotDataset")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of a row and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
