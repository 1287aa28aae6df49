#!/usr/bin/env python
"""What the loader delivers to the device, and decoding on the GPU beside decoding on the CPU.

    python benchmarks/gpu/fed.py --json FILE [--budget SECONDS] [--rehearse]

The data are the reference shards of the tests, whose JPEGs are as large as DROID's (20 KB), joined
to episodes of DROID's usual length: as shards, and as our tree of PNGs. The first table counts
images that lie on the device, cropped to 224 pixels and normalised, while nothing else runs there.

The second table decodes batches of JPEGs: by simplejpeg on one core, and by nvJPEG through
torchvision on the GPU. "Training beside it" is the rate of a ResNet-50's training step, in bfloat16
and eager, while the GPU decodes as many images as it trains on, as a fraction of its rate alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.io import decode_jpeg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other benchmarks

import simplejpeg
from loader import IMAGENET, SOURCE, hardware, write_shards
from train_step import Bench, Row, images_per_second, resident_batch, synchronise

from mcr.data.batch import NUM_FRAMES, UNNAMED
from mcr.data.episode import Episode
from mcr.data.extract import extract
from mcr.data.extract_shard import Options
from mcr.data.index import Index, open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.selection import Episodes
from mcr.data.sources.rlds import RldsSource
from mcr.models.crops import network_input
from mcr.runs.atomic import write_text
from mcr.runs.processes import num_cores
from mcr.training.engine import make_deterministic, on_device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=100, help="seconds, then no further row")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    deadline = time.monotonic() + (float("inf") if arguments.rehearse else arguments.budget)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = 0.5 if arguments.rehearse else 2.0
    content: dict = {"hardware": hardware(), "loader": [], "decoding": []}
    print(f"hardware: {content['hardware']}", flush=True)
    make_deterministic(False)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(SOURCE, Path(folder) / "shards")
        for found in decoding(shards, device, seconds, arguments.rehearse):
            content["decoding"].append(found)
            write_text(arguments.json, json.dumps(content, indent=1))
            print(found, flush=True)
        tree = Path(folder) / "tree"
        extract(shards, tree, Options(), workers=1)
        indexes = {"shards": open_index(shards, workers=1), "our tree": open_index(tree, workers=1)}
        counts = [1, 2] if arguments.rehearse else [1, 2, 4, 8, 16]
        counts = [n for n in counts if n <= max(2, num_cores())]
        for (source, index), workers in itertools.product(indexes.items(), reversed(counts)):
            if time.monotonic() > deadline:
                print(f"out of time: {source}, {workers} workers")
                continue
            rate = delivered(index, workers, device, 8 if arguments.rehearse else 128, seconds)
            found = {"source": source, "workers": workers, "images_per_s": round(rate)}
            content["loader"].append(found)
            write_text(arguments.json, json.dumps(content, indent=1))
            print(found, flush=True)


def delivered(
    index: Index, workers: int, device: torch.device, batch_size: int, seconds: float
) -> float:
    """Images per second that arrive on the device and leave the crop."""
    config = DataConfig(workers=workers)
    clips = ClipDataset(index, Episodes(np.arange(len(index))), config, seed=0)
    loader = ClipLoader(clips, config, batch_size, pin_memory=device.type == "cuda")
    parts = on_device(({UNNAMED: batch} for batch in loader), device)

    def one() -> None:
        batch = next(parts)[UNNAMED]
        network_input(batch.frames, batch.crops, 224, *IMAGENET)

    # What was ready before the clock starts must not count.
    rate = calls_per_second(one, seconds, device, warm_up=workers + 4)
    return rate * batch_size * NUM_FRAMES


# --------------------------------------------------------------------------- decoding


def decoding(shards: Path, device: torch.device, seconds: float, rehearse: bool):
    """Rows of the second table."""
    encoded = jpegs(shards, 64 if rehearse else 640)
    size = sum(map(len, encoded)) / len(encoded)

    def on_cpu() -> None:
        for data in encoded:
            simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=False)

    rate = len(encoded) * calls_per_second(on_cpu, seconds, device)
    yield {"way": "simplejpeg, one core", "bytes": round(size), "images_per_s": round(rate)}
    if device.type != "cuda":
        yield {"way": "nvJPEG", "skipped": "no GPU"}
        return
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
    rate = len(encoded) * calls_per_second(
        lambda: decode_jpeg(tensors, device=device), seconds, device
    )
    beside, alone = training_beside(tensors, shards, device, seconds)
    yield {
        "way": "nvJPEG",
        "images_per_s": round(rate),
        "training_alone": round(alone),
        "training_beside_it": round(beside),
        "fraction": round(beside / alone, 3),
    }


def jpegs(shards: Path, count: int) -> list[bytes]:
    """`count` stored pictures of the first record, going round as needed."""
    episode = next(RldsSource(shards).parts()[0].episodes())
    assert isinstance(episode, Episode), episode
    camera = next(iter(episode.pictures))
    steps = itertools.islice(itertools.cycle(range(episode.length)), count)
    return [bytes(episode.encoded_frame(camera, step)) for step in steps]


def calls_per_second(
    act: Callable[[], object], seconds: float, device: torch.device, warm_up: int = 2
) -> float:
    """Calls per second, after `warm_up` calls that do not count."""
    for _ in range(warm_up):
        act()
    synchronise(device)
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        act()
        calls += 1
    synchronise(device)
    return calls / (time.perf_counter() - began)


def training_beside(
    tensors: list[torch.Tensor], shards: Path, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Images per second of training (while as many are decoded on the same GPU, alone)."""
    index = open_index(shards, workers=1)
    config = DataConfig(workers=0)
    clips = ClipDataset(index, Episodes(np.arange(len(index))), config, seed=0)
    row = Row("ours", len(tensors) // NUM_FRAMES, 224)
    step, _ = Bench(clips, config, device, seconds).prepare(row)
    batch = resident_batch(clips, row.clips, device)
    alone = images_per_second(step, itertools.repeat(batch), device, seconds)
    wanted, over = threading.Semaphore(0), threading.Event()

    def decode() -> None:
        with torch.cuda.stream(torch.cuda.Stream(device)):
            while not over.is_set():
                if wanted.acquire(timeout=0.1):
                    decode_jpeg(tensors, device=device)

    def paced():
        while True:
            wanted.release()
            yield batch

    thread = threading.Thread(target=decode)
    thread.start()
    beside = images_per_second(step, paced(), device, seconds)
    over.set()
    thread.join()
    return beside, alone


if __name__ == "__main__":
    main()
