#!/usr/bin/env python
"""Samples per second of LeRobot's own loader, for `benchmarks/sources.py`.

    python benchmarks/of_others/lerobot_frames.py DATA SECONDS

A sample is five random frames of one camera of an episode, as `mcr` draws them, with their states
and actions. It runs in an environment that has `lerobot`, and prints one number.
"""

import sys
import time

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

root, seconds = sys.argv[1], float(sys.argv[2])
plain = LeRobotDataset("local/data", root=root, video_backend="pyav")
lengths = np.array([episode["length"] for episode in plain.meta.episodes])
starts = np.cumsum(lengths) - lengths
cameras = plain.meta.camera_keys
generator = np.random.default_rng(0)


def sample() -> None:
    episode, camera = generator.integers(len(lengths)), cameras[generator.integers(len(cameras))]
    steps = np.sort(generator.integers(lengths[episode], size=5))
    rows = plain.hf_dataset.select_columns(["observation.state", "action", "timestamp"])
    rows = rows[(starts[episode] + steps).tolist()]
    if camera in plain.meta.video_keys:
        times = {camera: [float(t) for t in rows["timestamp"]]}
        query = getattr(plain, "_query_videos", None) or plain.reader._query_videos
        query(times, int(episode))
    else:
        plain.hf_dataset.select_columns([camera])[(starts[episode] + steps).tolist()]


for _ in range(3):
    sample()
count, began = 0, time.perf_counter()
while time.perf_counter() - began < seconds:
    sample()
    count += 1
print(count / (time.perf_counter() - began))
