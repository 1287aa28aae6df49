#!/usr/bin/env python
"""CPU time of extraction per frame: ours against upstream's way, on the same episodes, in one run.

    python benchmarks/extract.py [INPUT] [--rounds 5]

Upstream's way: `tensorflow_datasets` reads an episode, decoding all cameras, and
`matplotlib.pyplot.imsave` writes two of them as RGBA PNGs. Its pickling of pixels to a pool of
processes is left out, so the ratio is cautious. Where TensorFlow is not installed, a stand-in that
costs less still: our reader, Pillow decoding the two cameras alone, and the same imsave.

Every way runs in a process of its own and writes to fresh folders, in memory where the system has
/dev/shm. CPU time is user + system of all its threads, without imports and start-up; the first pass
over the input warms up and does not count, then the ways take turns and the median round counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone, not installed

from mcr.runs.processes import processor  # noqa: E402

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left")
HAS_TENSORFLOW = all(
    importlib.util.find_spec(name) for name in ("tensorflow", "tensorflow_datasets")
)


@dataclass(frozen=True)
class Cost:
    cpu_s: float
    frames: int
    num_bytes: int

    @property
    def ms(self) -> float:
        return 1e3 * self.cpu_s / self.frames


def ours(source: Path, output: Path, format: str) -> None:
    """What a worker of `mcr.data.extract` does for each of its shards."""
    from mcr.data.episode import unique_names
    from mcr.data.extract_shard import Options, ShardTask, extract_shard
    from mcr.data.manifest import Manifest, Page
    from mcr.data.sources.rlds import RldsSource

    manifest = Manifest(output.with_name(f"{output.name}.manifest"), output)
    manifest.begin({})
    opened = RldsSource(source)
    for part in opened.parts():
        task = ShardTask(
            part=part,
            page=Page.of_shard(part.path),
            names=tuple(unique_names(part.origins())),
            limit=None,
            options=Options(CAMERAS, format),
            manifest=manifest,
            path=opened.path,
            root=opened.root,
            schema=opened.schema,
        )
        extract_shard(task)


def upstream(source: Path, output: Path) -> None:
    """TensorFlow Datasets and imsave, as upstream's script uses them."""
    import tensorflow_datasets as tfds
    from matplotlib import pyplot

    episodes = tfds.builder_from_directory(source).as_dataset(split="train")
    for number, episode in enumerate(episodes):
        for camera in CAMERAS:
            (output / str(number) / camera).mkdir(parents=True)
        for step, content in enumerate(episode["steps"]):
            for camera in CAMERAS:
                pixels = content["observation"][camera].numpy()
                pyplot.imsave(output / str(number) / camera / f"{step}.png", pixels)


def stand_in(source: Path, output: Path) -> None:
    """Upstream's way without TensorFlow."""
    import io

    import numpy as np
    from matplotlib import pyplot
    from PIL import Image

    from mcr.data.sources.rlds import RldsSource

    episodes = (episode for part in RldsSource(source).parts() for episode in part.episodes())
    for number, episode in enumerate(episodes):
        for camera in CAMERAS:
            folder = output / str(number) / camera
            folder.mkdir(parents=True)
            for step in range(episode.length):
                pixels = np.asarray(Image.open(io.BytesIO(episode.encoded_frame(camera, step))))
                pyplot.imsave(folder / f"{step}.png", pixels)


def measure(way: Callable[..., None], source: Path, *arguments: str) -> Cost:
    """Run one way over the whole input, into a folder that is removed afterwards."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        output = Path(folder, "tree")
        output.mkdir()
        begun = time.process_time()
        way(source, output, *arguments)
        cpu_s = time.process_time() - begun
        files = [path for path in output.rglob("*") if path.suffix in (".png", ".jpg")]
        return Cost(cpu_s, len(files), sum(path.stat().st_size for path in files))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Its JPEGs are as large as DROID's, about 20 KB; the smooth simulated sample's are 4 KB.
    default = ROOT / "tests/data/droid_tfds/1.0.0"
    parser.add_argument("input", nargs="?", type=Path, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    baseline = "upstream: TensorFlow + imsave" if HAS_TENSORFLOW else "stand-in: Pillow + imsave"
    ways: dict[str, tuple] = {
        baseline: (upstream if HAS_TENSORFLOW else stand_in, arguments.input),
        "mcr, --format png": (ours, arguments.input, "png"),
        "mcr, --format jpeg": (ours, arguments.input, "jpeg"),
    }
    context = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, context) for name in ways}
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(arguments.rounds + 1):
        for name, way in ways.items():
            costs[name].append(pools[name].submit(measure, *way).result())
    for pool in pools.values():
        pool.shutdown()

    reference = costs[baseline][0]
    print(f"{processor()}, {platform.system()}, Python {platform.python_version()}")
    print(f"{arguments.input}: {reference.frames:,} frames, median of {arguments.rounds} rounds\n")
    print(f"{'way':32}{'CPU ms/frame':>14}{'ratio':>8}{'bytes/frame':>14}{'bytes':>8}")
    medians = {name: statistics.median(c.ms for c in found[1:]) for name, found in costs.items()}
    for name, found in costs.items():
        # Per frame: upstream's way loses recordings that share a name.
        bytes_per_frame = found[0].num_bytes / found[0].frames
        print(
            f"{name:32}{medians[name]:14.3f}{medians[baseline] / medians[name]:8.1f}"
            f"{bytes_per_frame:14,.0f}"
            f"{bytes_per_frame / (reference.num_bytes / reference.frames):8.2f}"
        )


if __name__ == "__main__":
    main()
