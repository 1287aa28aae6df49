"""The same four episodes, written in every format that is read, for tests that compare formats.

Pictures are smooth, so that a JPEG of quality 95 hardly changes them. All lossless formats get the
pixels that the JPEGs of the RLDS shards decode to.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

import mcr
from mcr.data.pictures import decode_jpeg
from mcr.data.tf_example import encode_example
from mcr.data.tfrecord import write_records

SIZES = {"front": (48, 64), "wrist": (32, 40)}
LENGTHS = (14, 9, 20, 12)
HZ = 10


@dataclass(frozen=True)
class Recorded:
    """One episode: jpegs {camera: [bytes]}, frames {camera: uint8 [T, H, W, 3]}, numbers, text."""

    jpegs: dict[str, list[bytes]]
    frames: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    text: str


def record_episodes(seed: int = 0) -> list[Recorded]:
    """Make the four episodes: state [T, 9], action [T, 7]."""
    generator = np.random.default_rng(seed)
    return [_record(generator, number, length) for number, length in enumerate(LENGTHS)]


def _record(generator: np.random.Generator, number: int, length: int) -> Recorded:
    jpegs = {
        camera: [
            simplejpeg.encode_jpeg(_picture(size, number, step), 95, "RGB", "420")
            for step in range(length)
        ]
        for camera, size in SIZES.items()
    }
    frames = {c: np.stack([decode_jpeg(data) for data in datas]) for c, datas in jpegs.items()}
    state = generator.normal(size=(length, 9)).astype(np.float32)
    action = generator.normal(size=(length, 7)).astype(np.float32)
    return Recorded(jpegs, frames, state, action, f"put block {number} away")


def _picture(size: tuple[int, int], number: int, step: int) -> np.ndarray:
    rows, columns = np.meshgrid(*(np.linspace(0, 1, n) for n in size), indexing="ij")
    phase = step / 7 + number
    channels = [
        np.sin(3 * rows + phase),
        np.cos(2 * columns + phase),
        np.sin(rows + columns - phase),
    ]
    return np.ascontiguousarray(np.stack(channels, -1) * 100 + 127).astype(np.uint8)


# --------------------------------------------------------------------------- writers


def write_rlds(root: Path, episodes: list[Recorded]) -> Path:
    """Two shards of one split, with an embedding that nobody asks for."""
    root = root / "rlds" / "1.0.0"
    root.mkdir(parents=True)
    image = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"}
    pictures = {
        camera: {**image, "image": {"shape": {"dimensions": [str(n) for n in (*size, 3)]}}}
        for camera, size in SIZES.items()
    }
    steps = {
        "action": _tensor("float32", 7),
        "is_first": _tensor("bool"),
        "language_embedding": _tensor("float32", 512),
        "language_instruction": _text(),
        "observation": _dict({**pictures, "state": _tensor("float32", 9)}),
    }
    features = _dict({"steps": {"sequence": {"feature": _dict(steps)}}})
    (root / "features.json").write_text(json.dumps(features))
    info = {
        "name": "all_formats",
        "splits": [{"name": "train", "shardLengths": ["2", "2"]}],
    }
    (root / "dataset_info.json").write_text(json.dumps(info))
    for shard in range(2):
        path = root / f"all_formats-train.tfrecord-{shard:05d}-of-00002"
        write_records(path, [_example(e) for e in episodes[2 * shard : 2 * shard + 2]])
    return root


def _example(episode: Recorded) -> bytes:
    length = len(episode.action)
    return encode_example(
        {
            "steps/action": episode.action,
            "steps/is_first": np.arange(length) == 0,
            "steps/language_embedding": np.zeros((length, 512), np.float32),
            "steps/language_instruction": [episode.text.encode()] * length,
            "steps/observation/state": episode.state,
            **{f"steps/observation/{c}": datas for c, datas in episode.jpegs.items()},
        }
    )


def _dict(features: dict) -> dict:
    return {"featuresDict": {"features": features}}


def _tensor(dtype: str, *shape: int) -> dict:
    return {
        "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
        "tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype},
    }


def _text() -> dict:
    name = "tensorflow_datasets.core.features.text_feature.Text"
    return {"pythonClassName": name, "text": {}}


def write_tree(root: Path, episodes: list[Recorded]) -> Path:
    for number, episode in enumerate(episodes):
        mcr.write_episode(
            root / "tree",
            f"episode_{number:03d}",
            episode.frames,
            episode.state,
            episode.action,
            episode.text,
        )
    return root / "tree"


def write_hdf5(root: Path, episodes: list[Recorded]) -> Path:
    """robomimic's layout, pictures compressed."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    path = root / "demos.hdf5"
    with h5py.File(path, "w") as file:
        for number, episode in enumerate(episodes):
            group = file.create_group(f"data/demo_{number}")
            group["actions"] = episode.action
            group["obs/state"] = episode.state
            group.attrs["language_instruction"] = episode.text
            for camera, frames in episode.frames.items():
                group.create_dataset(f"obs/{camera}", data=frames, compression="gzip")
    return path


def write_lerobot(root: Path, episodes: list[Recorded]) -> Path:
    """Version 2.1 with PNGs inside the parquet files."""
    import pyarrow as pa
    from pyarrow import parquet

    root = root / "lerobot"
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    features: dict = {
        "observation.state": {"dtype": "float32", "shape": [9], "names": None},
        "action": {"dtype": "float32", "shape": [7], "names": None},
    }
    for camera, size in SIZES.items():
        features[f"observation.images.{camera}"] = {
            "dtype": "image",
            "shape": [*size, 3],
            "names": ["height", "width", "channels"],
        }
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    info = {
        "codebase_version": "v2.1",
        "fps": HZ,
        "chunks_size": 1000,
        "total_episodes": len(episodes),
        "total_frames": sum(LENGTHS),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = {"episodes.jsonl": [], "tasks.jsonl": []}
    first = 0
    for number, episode in enumerate(episodes):
        length = len(episode.action)
        described = {"episode_index": number, "tasks": [episode.text], "length": length}
        lines["episodes.jsonl"].append(json.dumps(described))
        lines["tasks.jsonl"].append(json.dumps({"task_index": number, "task": episode.text}))
        columns = {
            "observation.state": list(episode.state),
            "action": list(episode.action),
            **{
                f"observation.images.{camera}": [
                    {"bytes": _png(frame), "path": f"{step}.png"}
                    for step, frame in enumerate(frames)
                ]
                for camera, frames in episode.frames.items()
            },
            "timestamp": np.arange(length, dtype=np.float32) / HZ,
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": first + np.arange(length),
            "task_index": np.full(length, number),
        }
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        parquet.write_table(pa.table(columns), path)
        first += length
    for name, texts in lines.items():
        (root / "meta" / name).write_text("".join(f"{text}\n" for text in texts))
    return root


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png")
    return buffer.getvalue()


def write_media(root: Path, episodes: list[Recorded]) -> Path:
    """A folder per episode: a lossless video per camera, and a table."""
    import av
    import pandas as pd

    for number, episode in enumerate(episodes):
        folder = root / "media" / f"episode_{number:03d}"
        folder.mkdir(parents=True)
        table = pd.DataFrame(
            {
                **{f"state_{i}": episode.state[:, i] for i in range(9)},
                **{f"action_{i}": episode.action[:, i] for i in range(7)},
                "text": episode.text,
            }
        )
        table.to_csv(folder / "signals.csv", index=False, float_format="%.9g")
        for camera, frames in episode.frames.items():
            options = {"fflags": "bitexact"}  # no random numbers in the file
            with av.open(folder / f"{camera}.mkv", "w", options=options) as container:
                stream = container.add_stream("ffv1", rate=HZ)
                stream.height, stream.width = frames.shape[1:3]
                stream.pix_fmt = "bgr0"
                for frame in frames:
                    picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    container.mux(stream.encode(picture.reformat(format="bgr0")))
                container.mux(stream.encode())
    return root / "media"


FORMATS = {
    "rlds": write_rlds,
    "tree": write_tree,
    "hdf5": write_hdf5,
    "lerobot": write_lerobot,
    "media": write_media,
}
