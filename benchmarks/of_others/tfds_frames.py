#!/usr/bin/env python
"""Samples per second of `tensorflow_datasets` on RLDS shards, for `benchmarks/sources.py`.

    python benchmarks/of_others/tfds_frames.py DATA SECONDS

A sample is five random frames of one camera of an episode, decoded, with their states and actions.
TensorFlow can only read a whole episode; the pictures that are not drawn are not decoded. It runs
in an environment that has `tensorflow` and `tensorflow_datasets`, and prints one number.
"""

import sys
import time

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

root, seconds = sys.argv[1], float(sys.argv[2])
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.threading.set_intra_op_parallelism_threads(1)
builder = tfds.builder_from_directory(root)
features = builder.info.features["steps"]["observation"]
cameras = [name for name, f in features.items() if isinstance(f, tfds.features.Image)]
skipped = {"steps": {"observation": {name: tfds.decode.SkipDecoding() for name in cameras}}}
options = tf.data.Options()
options.threading.private_threadpool_size = 1
episodes = builder.as_dataset(split="train", decoders=skipped, shuffle_files=True)
episodes = episodes.with_options(options).shuffle(16).repeat()
generator = np.random.default_rng(0)


def sample(episode) -> None:
    steps = next(iter(episode["steps"].batch(10_000)))
    camera = cameras[generator.integers(len(cameras))]
    pictures = steps["observation"][camera]
    for step in generator.integers(len(pictures), size=5):
        tf.io.decode_image(pictures[step]).numpy()


stream = iter(episodes)
sample(next(stream))
count, began = 0, time.perf_counter()
while time.perf_counter() - began < seconds:
    sample(next(stream))
    count += 1
print(count / (time.perf_counter() - began))
