#!/usr/bin/env python
"""Time per frame of a feature cache beside upstream's way, on the same pictures, in one run.

    python benchmarks/features.py [--backbone resnet50] [--source resources/sample_droid/1.0.0]

Upstream's way, as in its example: open a PNG with Pillow, torchvision's Resize(256), CenterCrop
(224) and ToTensor, a batch of one through the network in float32 with gradients on; one process
with a thread per core, which wall time is compared with, and with one thread, which CPU time is
compared with. (The normalisation that the example forgets is added; it costs nothing.)

Ours: what `scripts/extract_features.py` runs, a process per core, from shards and from a PNG tree.
Start-up (importing torch, writing the ONNX file: 10 to 20 s) is left out on both sides. Weights are
random: time does not depend on them. Wall time is per frame of all processes together; CPU time is
the sum over them. Rows are measured in turn, the best round of each is kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from mcr.data.extract import extract
from mcr.data.extract_shard import Options
from mcr.features.extraction import FeatureConfig, Job, Worker, make_job
from mcr.features.recordings import open_recordings
from mcr.models.loading import load_model
from mcr.runs.processes import num_cores, process_pool, processor

CAMERA = "exterior_image_1_left"
ALL_CORES, ONE_THREAD = "upstream's way, PNG", "upstream's way, PNG, one thread"
Measurement = tuple[int, float, float]  # frames, wall seconds, CPU seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[1] / "resources/sample_droid/1.0.0"
    parser.add_argument("--source", type=Path, default=default, help="an RLDS version folder")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--seconds", type=float, default=4.0, help="per row and round")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(f"hardware: {processor()}; torch {torch.__version__}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        ways = prepare(options.source, options.backbone, Path(folder), options.seconds)
        best: dict[str, tuple[float, float]] = {}
        for _ in range(options.rounds):
            for name, measure in ways.items():
                frames, wall, cpu = measure()
                found = (1e3 * wall / frames, 1e3 * cpu / frames)
                best[name] = min(best.get(name, found), found)
    print("| way | wall ms/frame | ratio | CPU ms/frame | ratio |\n|---|---|---|---|---|")
    base_wall, base_cpu = best[ALL_CORES][0], best[ONE_THREAD][1]
    for name, (wall, cpu) in best.items():
        print(
            f"| {name} | {wall:.1f} | {base_wall / wall:.1f} | {cpu:.1f} | {base_cpu / cpu:.1f} |"
        )


def prepare(
    source: Path, backbone: str, folder: Path, seconds: float
) -> dict[str, Callable[[], Measurement]]:
    """The rows of the table. Indexes are left beside the data, so beside a copy."""
    shards, tree = folder / "shards", folder / "tree"
    shutil.copytree(source, shards)
    extract(shards, tree, Options(), workers=num_cores())
    weights = folder / f"{backbone}.pth"
    network = getattr(torchvision.models, backbone)()
    network.fc = torch.nn.Identity()
    torch.save(network.state_dict(), weights)
    ways: dict[str, Callable[[], Measurement]] = {
        name: partial(_alone, _upstreams_way, tree, backbone, seconds, num_threads)
        for name, num_threads in ((ALL_CORES, num_cores()), (ONE_THREAD, 1))
    }
    for name, data, engine, precision in (
        ("ours, shards, ONNX Runtime", shards, "onnx", "fp32"),
        ("ours, PNG tree, ONNX Runtime", tree, "onnx", "fp32"),
        ("ours, shards, torch", shards, "torch", "fp32"),
        ("ours, shards, torch in bf16 (features differ by 1%)", shards, "torch", "bf16"),
    ):
        config = FeatureConfig(engine=engine, precision=precision, cameras=(CAMERA,))
        place = folder / f"{engine}-{precision}-{data.name}"
        place.mkdir()
        ways[name] = partial(_ours, _empty_cache(place, weights, data, config), seconds)
    return ways


def _empty_cache(place: Path, weights: Path, data: Path, config: FeatureConfig) -> Job:
    encoder, recordings = load_model(weights), open_recordings(data)
    shape = (sum(recordings.lengths), 1, encoder.embed_dim)
    np.lib.format.open_memmap(place / "features.npy", "w+", np.float32, shape)
    return make_job(place, weights, encoder, recordings, config)


def _alone(function: Callable[..., Measurement], *arguments: object) -> Measurement:
    with process_pool(1) as pool:
        return pool.submit(function, *arguments).result()


def _upstreams_way(tree: Path, backbone: str, seconds: float, num_threads: int) -> Measurement:
    torch.set_num_threads(num_threads)
    network = getattr(torchvision.models, backbone)().eval()
    network.fc = torch.nn.Identity()
    prepare_picture = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(256),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    paths = sorted(tree.glob(f"*/{CAMERA}/*.png"))
    for path in paths[:3]:
        network(prepare_picture(Image.open(path))[None])
    frames, began, cpu_began = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        network(prepare_picture(Image.open(paths[frames % len(paths)]))[None])
        frames += 1
    return frames, time.perf_counter() - began, time.process_time() - cpu_began


def _ours(job: Job, seconds: float) -> Measurement:
    with process_pool(num_cores()) as pool:
        shares = [pool.submit(_share, job, n, seconds) for n in range(num_cores())]
        frames, walls, cpus = zip(*(share.result() for share in shares), strict=True)
    rate = sum(n / wall for n, wall in zip(frames, walls, strict=True))
    return sum(frames), sum(frames) / rate, sum(cpus)


def _share(job: Job, first: int, seconds: float) -> Measurement:
    """What a worker of the cache does, for some seconds."""
    torch.set_num_threads(1)
    worker = Worker(job, num_threads=1)
    lengths = job.recordings.lengths
    worker.encode(first)
    episode, frames, began, cpu_began = first, 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        episode = (episode + num_cores()) % len(lengths)
        frames += lengths[worker.encode(episode)]
    return frames, time.perf_counter() - began, time.process_time() - cpu_began


if __name__ == "__main__":
    main()
