#!/usr/bin/env python
"""What it costs to read robot data of every format, beside the usual ways, in one run.

    python benchmarks/sources.py [--lerobot DATA] [--rlds DATA] [--lerobot-python PYTHON]
                                 [--tfds-python PYTHON] [--seconds 10]

Training samples (five frames of one camera, with states and actions) per second of one process:

    LeRobot     ours from a pack, ours without one, LeRobot's own loader
    HDF5        ours from a pack, h5py from uncompressed and from gzip chunks of the same data
    RLDS        ours from the shards, tensorflow_datasets

and packing: frames per second of one worker beside PyAV's sequential decoding alone. A way of
others runs in an environment of its own; without --lerobot-python or --tfds-python its row is left
out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from mcr.data.frames import FrameReader
from mcr.data.index import Index, open_index
from mcr.data.loader import ClipDataset, DataConfig
from mcr.data.pack import PackOptions, open_pack, pack_path
from mcr.data.selection import select_episodes
from mcr.runs.atomic import remove
from mcr.runs.processes import processor

ROOT = Path(__file__).resolve().parents[1]
LEROBOT = ROOT / "tests/data/reference/lerobot/lerobot_v3_video"
RLDS = ROOT / "tests/data/reference/oxe/bridge_like/1.0.0"
BATCH = 16


def rate(step: Callable[[], int], seconds: float) -> float:
    """Call `step`, which says how much it has done, for some seconds. Returns work per second."""
    step()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += step()
    return done / (time.perf_counter() - began)


def our_samples(index: Index, packed: bool, seconds: float) -> float:
    reader = FrameReader(index, open_pack(index, workers=1) if packed else None)
    config = DataConfig()
    episodes, _ = select_episodes(index, config.selection)
    clips = ClipDataset(index, episodes, config, seed=0, frames=reader)
    numbers = iter(range(0, 10**9, BATCH))

    def step() -> int:
        first = next(numbers)
        assert clips.load(list(range(first, first + BATCH))).batch is not None
        return BATCH

    return rate(step, seconds)


def of_others(python: str | None, script: str, data: Path, seconds: float) -> float | None:
    if not python:
        return None
    program = ROOT / "benchmarks/of_others" / script
    command = [python, str(program), str(data), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def write_hdf5(path: Path, index: Index, compression: str | None) -> Path:
    """The same data as robomimic stores it: a chunk per frame, as h5py and robomimic make them."""
    reader = FrameReader(index)
    with h5py.File(path, "w") as file:
        for row in range(len(index)):
            begin, length = int(index.starts[row]), int(index.lengths[row])
            group = file.create_group(f"data/demo_{row}")
            signals = index.signals[begin : begin + length]
            group["actions"] = signals[:, index.signal_columns("action")]
            group["obs/state"] = signals[:, index.signal_columns("state")]
            for number, camera in enumerate(index.cameras):
                frames = np.stack(list(reader.episode(row, number)))
                group.create_dataset(f"obs/{camera}", data=frames, compression=compression)
    return path


def h5py_samples(path: Path, seconds: float) -> float:
    """Five frames and numbers by h5py, as any data set class does it."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "r") as file:
        episodes = [file["data"][name] for name in file["data"]]
        cameras = [name for name, values in episodes[0]["obs"].items() if values.ndim == 4]

        def step() -> int:
            episode = episodes[generator.integers(len(episodes))]
            frames = episode["obs"][cameras[generator.integers(len(cameras))]]
            for number in np.sort(generator.integers(len(frames), size=5)).tolist():
                frames[number], episode["actions"][number], episode["obs/state"][number]
            return 1

        return rate(step, seconds)


def packing(index: Index, seconds: float) -> tuple[float, float]:
    """Frames per second: PyAV alone, one video after the other; and packing by one worker."""
    videos = sorted(index.source.rglob("*.mp4"))

    def decode() -> int:
        count = 0
        for path in videos:
            with av.open(str(path)) as container:
                container.streams.video[0].thread_type = "AUTO"
                for frame in container.decode(video=0):
                    frame.to_ndarray(format="rgb24")
                    count += 1
        return count

    def pack() -> int:
        remove(pack_path(index))
        return open_pack(index, PackOptions(), workers=1).info["frames"]

    return rate(decode, seconds), rate(pack, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lerobot", type=Path, default=LEROBOT, help="a LeRobot data set")
    parser.add_argument("--rlds", type=Path, default=RLDS, help="an RLDS version folder")
    parser.add_argument("--lerobot-python", help="python of an environment with lerobot")
    parser.add_argument("--tfds-python", help="python of an environment with tensorflow_datasets")
    parser.add_argument("--seconds", type=float, default=10, help="per row; default: %(default)s")
    options = parser.parse_args()
    seconds = options.seconds
    print(processor())
    rows: list[tuple[str, float | None, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        # Indexes and packs are written beside the data, so the data is copied first.
        lerobot = Path(shutil.copytree(options.lerobot, Path(folder) / "lerobot"))
        index = open_index(lerobot)
        alone, packed = packing(index, seconds)
        own = our_samples(index, True, seconds)
        theirs = of_others(options.lerobot_python, "lerobot_frames.py", lerobot, seconds)
        rows.append(("LeRobot: ours from a pack, to LeRobot's loader", theirs, own))
        rows.append(("LeRobot: ours without a pack", theirs, our_samples(index, False, seconds)))
        for compression in (None, "gzip"):
            name = f"{compression or 'raw'}.hdf5"
            path = write_hdf5(Path(folder) / name, index, compression)
            own = our_samples(open_index(path), True, seconds)
            rows.append((f"HDF5 ({name}): ours, to h5py", h5py_samples(path, seconds), own))
        rlds = Path(shutil.copytree(options.rlds, Path(folder) / "rlds"))
        theirs = of_others(options.tfds_python, "tfds_frames.py", rlds, seconds)
        own = our_samples(open_index(rlds), False, seconds)
        rows.append(("RLDS: ours, to tensorflow_datasets", theirs, own))
    print("\n| samples per second of one process | others | ours | ratio |\n|---|---|---|---|")
    for name, others, ours in rows:
        beside = (
            f"{others:,.1f} | {ours:,.1f} | {ours / others:.1f}" if others else f"| {ours:,.1f} |"
        )
        print(f"| {name} | {beside} |")
    print(
        f"\npacking: {packed:,.0f} frames/s by one worker; PyAV's decoding alone {alone:,.0f}, "
        f"ratio {packed / alone:.2f}"
    )


if __name__ == "__main__":
    main()
