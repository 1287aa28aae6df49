#!/usr/bin/env python
"""The index: how fast it is built, what it costs to open and to hold, and what a read costs a disk.

    python benchmarks/index.py [--source tests/data/droid_tfds/1.0.0] [--episodes 1000 100000]

Build:   shards in the page cache, one process, checksums included, beside reading and CRC alone;
         and memory per episode, from real builds of many small episodes.
Open:    indices of as many episodes as --episodes says, each in a fresh process: seconds to the
         first batch, and memory of a loader process. The rows are a real index's, repeated, so that
         every frame decodes; the step arrays have their full size (signals of the copies are holes
         in the file).
Read:    bytes that a cold disk delivers per frame, with and without read-ahead.

The defaults take two minutes and 1.2 GB of disk.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from loader import SOURCE, write_shards

from mcr.data.index import Index, build_index, open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.selection import select_episodes, split_sessions
from mcr.data.sources.rlds import RldsSource
from mcr.data.tf_example import encode_example, parse_example
from mcr.data.tfrecord import read_records, write_records
from mcr.runs.processes import processor

WORKERS = 2
BATCH = 32
MB = 1e6


def alone(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)` in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_mb(process: str | int = "self") -> dict[str, float]:
    """Field of the kernel's account of a process -> MB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[-2]) * 1024 / MB for line in lines}


# --------------------------------------------------------------------------- build


def quietly_build(shards: Path, path: Path) -> Index:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return build_index(shards, path, workers=1)


def checksum(shards: Path) -> None:
    for part in RldsSource(shards).parts():
        assert all(record.payload for record in read_records(part.path))


def report_build(shards: Path, folder: Path, rounds: int) -> None:
    num_bytes = sum(part.size for part in RldsSource(shards).parts())
    ways: dict[str, Callable[[int], object]] = {
        "read and check": lambda number: checksum(shards),
        "build the index": lambda number: quietly_build(shards, folder / f"index{number}"),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, run in ways.items():
            began = time.process_time()
            run(number)
            rates[way].append(num_bytes / MB / (time.process_time() - began))
    print(f"\n| build, {num_bytes / MB:.0f} MB, one process | MB per CPU second |\n|---|---|")
    for way, found in rates.items():
        print(f"| {way} | {statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f}) |")


def write_small_episodes(shards: Path, folder: Path, count: int) -> None:
    """`count` episodes of three steps and tiny pictures, in the schema of `shards`."""
    (features,) = shards.glob("features.json")
    folder.mkdir()
    (folder / features.name).write_bytes(features.read_bytes())
    example = parse_example(next(read_records(next(shards.glob("*tfrecord*")))).payload or b"")
    length = len(example["steps/is_first"].ints())
    picture = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    content: dict[str, Any] = {}
    for key, feature in example.items():
        if "image" in key:
            content[key] = [picture] * 3
        elif "language" in key:
            content[key] = [b"put the marker in the cup, then push the drawer shut"] * 3
        elif key.startswith("steps/"):
            values = feature.ints() if "/is_" in key else feature.floats()
            content[key] = values[: 3 * (len(values) // length)]

    def payload(number: int) -> bytes:
        path = f"gs://xembodiment/r2d2-data-full/lab/success/2023-07-07/{number}/trajectory.h5"
        return encode_example(content | {"episode_metadata/file_path": [path.encode()]})

    write_records(folder / "small-train.tfrecord-00000-of-00001", map(payload, range(count)))


def build_peak_mb(shards: Path, path: Path) -> float:
    quietly_build(shards, path)
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024 / MB


def report_build_memory(shards: Path, folder: Path) -> None:
    counts = (1_000, 8_000)
    peaks = []
    for count in counts:
        write_small_episodes(shards, folder / f"small{count}", count)
        peaks.append(alone(build_peak_mb, folder / f"small{count}", folder / f"small{count}.index"))
    per_episode = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    print(
        f"\nmemory of the building process: {peaks[0]:.0f} MB at {counts[0]:,} episodes, "
        f"{peaks[1]:.0f} MB at {counts[1]:,}: {1e3 * per_episode:.1f} KB an episode, "
        f"so {1e5 * per_episode:.0f} MB more for 100,000 (extrapolated)"
    )


# --------------------------------------------------------------------------- open


def repeat_rows(index: Index, path: Path, num_episodes: int) -> None:
    """Write an index of `num_episodes` rows: those of `index` again and again, under new names."""
    copies = -(-num_episodes // len(index))
    copy = np.repeat(np.arange(copies), len(index))[:num_episodes]
    row = np.tile(np.arange(len(index)), copies)[:num_episodes]
    steps = index.info["total_steps"]
    path.mkdir()
    table = index.table.iloc[row].reset_index(drop=True)
    for column in ("name", "file_path"):
        table[column] += [f"_{number:06d}" for number in copy]
    table["session"] += [f"_{number // 50}" for number in copy]
    table["start"] += copy * steps
    table.to_csv(path / "episodes.csv", index=False)
    np.save(path / "names.npy", np.array([name.encode() for name in table["name"]]))
    np.save(path / "starts.npy", table["start"].to_numpy(np.int64))
    np.save(path / "lengths.npy", table["length"].to_numpy(np.int64))
    np.save(path / "shards.npy", table["shard"].to_numpy(np.int32))
    for name in ("frame_offsets.i64", "frame_lengths.i32"):
        content = (index.path / name).read_bytes()
        with (path / name).open("wb") as file:
            file.writelines(content for _ in range(copies))
    signals = (index.path / "signals.f32").read_bytes()
    (path / "signals.f32").write_bytes(signals)
    os.truncate(path / "signals.f32", copies * len(signals))
    info = index.info | {"episodes": num_episodes, "total_steps": copies * steps}
    (path / "index.json").write_text(json.dumps(info))


def open_and_load(shards: Path, path: Path, num_batches: int) -> dict[str, float]:
    """Seconds of each stage up to the first batch, and what a loader process then holds."""
    multiprocessing.set_start_method("fork", force=True)  # Linux's default; "spawn" came with us
    config = DataConfig(root=str(shards), workers=WORKERS)
    clock = [time.perf_counter()]
    index = open_index(shards, path)
    clock.append(time.perf_counter())
    episodes, _ = select_episodes(index, config.selection)
    train, _ = split_sessions(index, episodes, config.selection.val_fraction)
    clips = ClipDataset(index, train, config, seed=0)
    batches = iter(ClipLoader(clips, config, BATCH))
    clock.append(time.perf_counter())
    next(batches)
    clock.append(time.perf_counter())
    for _ in range(num_batches):
        next(batches)
    # what the pages of the mapped index and of libraries cost belongs to the page cache
    held = [memory_mb(child.pid or 0) for child in multiprocessing.active_children()]
    seconds = dict(zip(("open", "select", "first batch"), np.diff(clock).tolist(), strict=True))
    return seconds | {
        "all": clock[-1] - clock[0],
        "uss": statistics.mean(m["Private_Dirty"] + m["Private_Clean"] for m in held),
        "dirty": statistics.mean(m["Private_Dirty"] for m in held),
    }


def report_open(shards: Path, folder: Path, sizes: list[int]) -> None:
    index = open_index(shards, folder / "index0")
    print("\n| episodes | steps | on disk | open | filter and split | first batch | together |")
    print("|---|---|---|---|---|---|---|")
    held = []
    for size in sizes:
        path = folder / f"repeated{size}"
        repeat_rows(index, path, size)
        found = alone(open_and_load, shards, path, 60)
        disk = sum(file.stat().st_size for file in path.iterdir())
        print(
            f"| {size:,} | {Index(path).info['total_steps']:,} | {disk / 1e9:.2f} GB "
            f"| {found['open']:.2f} s | {found['select']:.2f} s | {found['first batch']:.2f} s "
            f"| {found['all']:.2f} s |"
        )
        held.append((size, found["uss"], found["dirty"]))
    print("\n| episodes | USS of a loader process | of it written to, not pages of mapped files |")
    print("|---|---|---|")
    for size, uss, dirty in held:
        print(f"| {size:,} | {uss:.0f} MB | {dirty:.0f} MB |")


# --------------------------------------------------------------------------- read


def bytes_from_disk() -> int:
    (line,) = (x for x in Path("/proc/self/io").read_text().splitlines() if "read_bytes" in x)
    return int(line.split()[1])


def read_cold(shard: Path, ranges: list[list[int]], advice: int) -> int:
    """Bytes that the disk delivers for these ranges of a file that is not in the page cache."""
    descriptor = os.open(shard, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(descriptor, 0, 0, advice)
    before = bytes_from_disk()
    for offset, length in ranges:
        os.pread(descriptor, length, offset)
    delivered = bytes_from_disk() - before
    os.close(descriptor)
    return delivered


def report_read(shards: Path, folder: Path, num_frames: int = 500) -> None:
    index = open_index(shards, folder / "index0")
    where = np.stack([index.frame_offsets, index.frame_lengths], -1).reshape(-1, 2).tolist()
    ranges = random.Random(0).sample(where, num_frames)
    frames = sum(length for _, length in ranges)
    print(f"\n| cold reads, {frames / num_frames / 1e3:.1f} KB a frame | from disk | ratio |")
    print("|---|---|---|")
    ways = {"as the system likes": os.POSIX_FADV_NORMAL, "read-ahead off": os.POSIX_FADV_RANDOM}
    for name, advice in ways.items():
        found = read_cold(shards / index.info["shards"][0], ranges, advice)
        print(f"| {name} | {found / num_frames / 1e3:.1f} KB | {found / frames:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, default=SOURCE, metavar="DIR", help="an RLDS version folder"
    )
    parser.add_argument(
        "--episodes",
        type=int,
        nargs="+",
        default=[1_000, 100_000],
        metavar="N",
        help="sizes of the repeated indices (default 1000 100000)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of building; the median counts")
    arguments = parser.parse_args()
    print(f"hardware: {processor()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(arguments.source, folder / "shards")
        report_build(shards, folder, arguments.rounds)
        report_build_memory(shards, folder)
        report_open(shards, folder, arguments.episodes)
        report_read(shards, folder)


if __name__ == "__main__":
    main()
