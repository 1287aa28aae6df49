"""LeRobot data sets: v2.1 with pictures in the tables, and v3.0 with videos."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from attacks.data_sets import DataSet, short_episodes
from attacks.parquet import damage_parquet
from tests.data.formats import HZ, write_lerobot
from tests.write_video import write_video


class _Lerobot(DataSet):
    def damage_structure(self, path: Path, draw: random.Random) -> str:
        return damage_parquet(path, draw) if path.suffix == ".parquet" else ""


class LerobotV2(_Lerobot):
    def sound(self, folder: Path) -> None:
        write_lerobot(folder, short_episodes()).rename(folder / "data")


class LerobotV3(_Lerobot):
    def sound(self, folder: Path) -> None:
        write_v3(folder / "data")


LENGTHS = (5, 4, 7, 6)
CAMERAS = ("observation.images.front", "observation.images.wrist")


def write_v3(root: Path) -> None:
    """One table and, per camera, one video for all four episodes."""
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    _write_info(root)
    tasks = pa.table({"task_index": [0, 1], "task": ["pick it up", "put it down"]})
    parquet.write_table(tasks, root / "meta/tasks.parquet")
    starts = np.cumsum([0, *LENGTHS[:-1]])
    episodes = {
        "episode_index": list(range(len(LENGTHS))),
        "length": list(LENGTHS),
        "tasks": [["pick it up"]] * len(LENGTHS),
        "data/chunk_index": [0] * len(LENGTHS),
        "data/file_index": [0] * len(LENGTHS),
    }
    for camera in CAMERAS:
        episodes |= {
            f"videos/{camera}/chunk_index": [0] * len(LENGTHS),
            f"videos/{camera}/file_index": [0] * len(LENGTHS),
            f"videos/{camera}/from_timestamp": (starts / HZ).tolist(),
        }
        write_video(root / f"videos/{camera}/chunk-000/file-000.mp4", sum(LENGTHS), fps=HZ)
    parquet.write_table(pa.table(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    _write_rows(root)


def _write_info(root: Path) -> None:
    features: dict = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        **{c: {"dtype": "video", "shape": [48, 64, 3], "names": None} for c in CAMERAS},
    }
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    info = {
        "codebase_version": "v3.0",
        "fps": HZ,
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "splits": {"train": "0:4"},
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info))


def _write_rows(root: Path) -> None:
    draw = np.random.default_rng(0)
    within = np.concatenate([np.arange(length) for length in LENGTHS])
    columns = {
        "observation.state": list(draw.normal(size=(sum(LENGTHS), 3)).astype(np.float32)),
        "action": list(draw.normal(size=(sum(LENGTHS), 2)).astype(np.float32)),
        "timestamp": (within / HZ).astype(np.float32),
        "frame_index": within,
        "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "index": np.arange(sum(LENGTHS)),
        "task_index": np.zeros(sum(LENGTHS), np.int64),
    }
    parquet.write_table(pa.table(columns), root / "data/chunk-000/file-000.parquet")
