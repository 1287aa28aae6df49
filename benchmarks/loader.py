#!/usr/bin/env python
"""Loader throughput beside upstream's way, on the same data, the same cores, in one run.

    python benchmarks/loader.py [--source tests/data/droid_tfds/1.0.0] [--workers 1 2]

Data: the source's episodes joined to episodes of about 250 steps, DROID's usual length, as shards,
as a tree that we write and as a tree that upstream's script writes (RGBA PNGs by matplotlib).

Upstream's way, per sample: list two folders, read a text file, unpickle the episode, decode five
PNGs, crop and resize each as float, collate float32. Rows called "cropped" deliver network input,
normalised, from the worker; the others deliver uint8 frames and boxes, for cropping on the device.
The last column is the ratio to upstream's way at equal processes. The defaults take two minutes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader, IterableDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from mcr.data.batch import NUM_FRAMES
from mcr.data.episode import Episode
from mcr.data.extract import extract
from mcr.data.extract_shard import Options
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.other_data import other_data
from mcr.data.pictures import decode
from mcr.data.schema import LANGUAGES
from mcr.data.selection import Episodes
from mcr.data.sources.rlds import RldsSource
from mcr.data.tf_example import encode_example
from mcr.data.tfrecord import write_records
from mcr.models.crops import network_input
from mcr.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from mcr.runs.processes import processor

EXTERIOR_CAMERAS = ("exterior_image_1_left", "exterior_image_2_left")
STATE = ("cartesian_position", "gripper_position", "joint_position")
SOURCE = Path(__file__).parents[1] / "tests/data/droid_tfds/1.0.0"
BATCH = 32
PREFETCH = 2
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


# --------------------------------------------------------------------------- data


def read_episodes(source: Path) -> list[Episode]:
    episodes = [episode for part in RldsSource(source).parts() for episode in part.episodes()]
    return [episode for episode in episodes if isinstance(episode, Episode)]


def long_episodes(source: Path, count: int = 4, steps: int = 250) -> Iterator[list[Episode]]:
    """`count` groups of episodes of together at least `steps` steps, going round as needed."""
    episodes = itertools.cycle(read_episodes(source))
    for _ in range(count):
        group = [next(episodes)]
        while sum(episode.length for episode in group) < steps:
            group.append(next(episodes))
        yield group


def joined_example(group: list[Episode], number: int) -> bytes:
    """One record in the data set's schema that holds a group of episodes end to end."""
    features: dict[str, list[bytes] | np.ndarray] = {}
    for key in group[0].signals:
        name = f"steps/observation/{key}" if key in STATE else f"steps/{key}"
        features[name] = np.concatenate([episode.signals[key] for episode in group])
    for camera in group[0].pictures:
        features[f"steps/observation/{camera}"] = [
            bytes(episode.encoded_frame(camera, step))
            for episode in group
            for step in range(episode.length)
        ]
    length = sum(episode.length for episode in group)
    features |= {f"steps/{key}": [b"pick up the cube"] * length for key in LANGUAGES}
    path = f"lab/success/2023-07-{number + 1:02d}/Fri_Jul_{number}/trajectory.h5"
    return encode_example(features | {"episode_metadata/file_path": [path.encode()]})


def write_shards(source: Path, folder: Path) -> Path:
    """A data set of long episodes in a single shard, in the new folder."""
    folder.mkdir()
    shutil.copy(RldsSource(source).root / "features.json", folder)
    payloads = (joined_example(group, i) for i, group in enumerate(long_episodes(source)))
    write_records(folder / "joined-train.tfrecord-00000-of-00001", payloads)
    return folder


def write_data(source: Path, folder: Path) -> tuple[Path, Path, Path]:
    """(shards, our tree, upstream's tree) below `folder`."""
    tree, upstream = folder / "tree", folder / "upstream_tree"
    shards = write_shards(source, folder / "shards")
    extract(shards, tree, Options(), workers=1)
    for episode in read_episodes(shards):
        write_as_upstream(upstream, episode)
    for root in (shards, tree, upstream):
        open_index(root)  # is built
    return shards, tree, upstream


def write_as_upstream(root: Path, episode: Episode) -> None:
    """The tree of upstream's script: RGBA PNGs by matplotlib, an ordinary pickle."""
    from matplotlib import pyplot

    folder = root / episode.origin.name
    for camera in EXTERIOR_CAMERAS:
        (folder / camera).mkdir(parents=True)
        for step in range(episode.length):
            pyplot.imsave(
                folder / camera / f"{step}.png", decode(episode.encoded_frame(camera, step))
            )
    for key, text in zip(LANGUAGES, episode.texts, strict=True):
        (folder / key).mkdir()
        (folder / key / "0.txt").write_text(text)
    (folder / "other_data.pkl").write_bytes(
        pickle.dumps(other_data(episode.signals, episode.origin))
    )


# --------------------------------------------------------------------------- ways of loading


class UpstreamsWay(IterableDataset):
    """The work that upstream's loader does for each sample."""

    def __init__(self, root: Path):
        self._root = root
        self._names = os.listdir(root)
        self._crop = torchvision.transforms.RandomResizedCrop(224, scale=(0.5, 1.0))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        while True:
            yield self._sample()

    def _sample(self) -> tuple[torch.Tensor, ...]:
        folder = self._root / random.choice(self._names)
        length = min(len(os.listdir(folder / camera)) for camera in EXTERIOR_CAMERAS)
        (folder / random.choice(LANGUAGES) / "0.txt").read_text()
        camera = folder / random.choice(EXTERIOR_CAMERAS)
        middle = random.randrange(2, length)
        steps = [
            1,
            length - 1,
            random.randrange(1, middle),
            middle,
            random.randrange(middle, length),
        ]
        data = pickle.loads((folder / "other_data.pkl").read_bytes())
        windows = []
        for centre in (steps[2], steps[4]):
            for step in (min(max(1, centre - 1) + i, length - 1) for i in range(3)):
                windows += [data[key][step] for key in STATE] + [data["action"][step]]
        actions = torch.tensor(np.stack([data["action"][step] for step in steps])).float()
        rgb = torchvision.io.ImageReadMode.RGB
        frames = [
            self._crop(torchvision.io.read_image(str(camera / f"{step}.png"), mode=rgb) / 255.0)
            * 255.0
            for step in steps
        ]
        return torch.stack(frames), torch.tensor(np.concatenate(windows)).float(), actions


class Cropped(torch.utils.data.Dataset):
    """Our clips as normalised network input, made in the worker, sent as frames are."""

    def __init__(self, clips: ClipDataset):
        self._clips = clips
        self._buffers: list[torch.Tensor] = []
        self._count = 0

    def __getitems__(self, samples: list[int]) -> torch.Tensor:
        if len(self._buffers) < PREFETCH + 2:
            images = torch.empty(BATCH * NUM_FRAMES, 224, 224, 3).share_memory_()
            self._buffers.append(images)
            self._frames = torch.empty(self._clips.frames_shape(BATCH), dtype=torch.uint8)
        self._count += 1
        buffer = self._buffers[self._count % len(self._buffers)]
        batch = self._clips.load(samples, self._frames).batch
        for clip, out in enumerate(buffer.split(NUM_FRAMES)):  # small pieces stay in the cache
            frames, crops = batch.frames[clip : clip + 1], batch.crops[clip : clip + 1]
            out.copy_(network_input(frames, crops, 224, *IMAGENET).permute(0, 2, 3, 1))
        return buffer


def cropped_batches(clips: ClipDataset, workers: int) -> Iterator[np.ndarray]:
    numbers = (list(range(i, i + BATCH)) for i in range(0, 10**9, BATCH))
    loader = DataLoader(
        Cropped(clips),
        batch_sampler=numbers,
        collate_fn=lambda batch: batch,
        num_workers=workers,
        prefetch_factor=PREFETCH,
    )
    for images in loader:
        yield images.numpy().copy()


def upstream_loader(root: Path, workers: int) -> DataLoader:
    return DataLoader(UpstreamsWay(root), BATCH, num_workers=workers, prefetch_factor=PREFETCH)


def our_loader(root: Path, workers: int, cropped: bool) -> Iterable:
    index = open_index(root)
    config = DataConfig(workers=workers, prefetch=PREFETCH)
    clips = ClipDataset(index, Episodes(np.arange(len(index))), config, seed=0)
    return cropped_batches(clips, workers) if cropped else ClipLoader(clips, config, BATCH)


def samples_per_second(loader: Iterable, seconds: float, workers: int) -> float:
    """Steady state: what is counted was loaded while the clock ran."""
    batches = iter(loader)
    for _ in range(4 * workers):
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        count += BATCH
    rate = count / (time.perf_counter() - began)
    del batches
    return rate


# --------------------------------------------------------------------------- report


def hardware() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor()}, {gpu}; torch {torch.__version__}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        type=Path,
        default=SOURCE,
        metavar="DIR",
        help="an RLDS version folder; default: the reference data of the tests, whose JPEGs are as "
        "large as DROID's (20 KB; the simulated sample's are 4 KB)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="loader processes; a table for each number (default 1 2)",
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of measuring, per row and round (default 3)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="rows take turns, the best counts (default 2)"
    )
    return parser.parse_args()


def extrapolation(images_per_s: float, workers: int) -> str:
    """What the fastest row promises, and what that promise rests on."""
    per_process = images_per_s / workers
    return (
        f"extrapolated, not measured: 16 processes with a core each, and storage that keeps up, "
        f"would deliver {16 * per_process:,.0f} images/s from shards (16 x {per_process:,.0f}, "
        f"from {workers} on {os.cpu_count()} cores); 8,000 take {8000 / per_process:.1f}"
    )


def main() -> None:
    arguments = parse_arguments()
    print(f"hardware: {hardware()}\n")
    with tempfile.TemporaryDirectory() as folder:
        shards, tree, upstream = write_data(arguments.source, Path(folder))
        ways = {
            "upstream's way, upstream's tree": lambda n: upstream_loader(upstream, n),
            "ours, shards": lambda n: our_loader(shards, n, False),
            "ours, our tree": lambda n: our_loader(tree, n, False),
            "ours, upstream's tree": lambda n: our_loader(upstream, n, False),
            "ours, shards, cropped": lambda n: our_loader(shards, n, True),
            "ours, our tree, cropped": lambda n: our_loader(tree, n, True),
        }
        print("\n| way | loader processes | samples/s | images/s | images/s per process | ratio |")
        print("|---|---|---|---|---|---|")
        for workers in arguments.workers:
            best = dict.fromkeys(ways, 0.0)
            for _ in range(arguments.rounds):
                for name, make in ways.items():
                    rate = samples_per_second(make(workers), arguments.seconds, workers)
                    best[name] = max(best[name], rate)
            for name, rate in best.items():
                images = rate * NUM_FRAMES
                ratio = rate / next(iter(best.values()))
                print(
                    f"| {name} | {workers} | {rate:.0f} | {images:.0f} | {images / workers:.0f} "
                    f"| {ratio:.1f} |"
                )
        print()
        print(extrapolation(best["ours, shards"] * NUM_FRAMES, workers))


if __name__ == "__main__":
    main()
