"""DROID's schema and metadata as `tensorflow_datasets` writes them.

`features.json` says what a record holds, `dataset_info.json` how many records each shard has. Both
are generated here without TensorFlow; `dataset.py` writes them next to the shards.
"""

from __future__ import annotations

from typing import Any

VERSION = "1.0.0"
HEIGHT, WIDTH = 180, 320
CAMERAS = {
    "exterior_image_1_left": "Exterior camera 1 left viewpoint",
    "exterior_image_2_left": "Exterior camera 2 left viewpoint",
    "wrist_image_left": "Wrist camera RGB left viewpoint",
}
LANGUAGES = ("language_instruction", "language_instruction_2", "language_instruction_3")
OBSERVATION_SIZES = {"cartesian_position": 6, "gripper_position": 1, "joint_position": 7}
COMMAND_SIZES = {
    "cartesian_position": 6,
    "cartesian_velocity": 6,
    "gripper_position": 1,
    "gripper_velocity": 1,
    "joint_position": 7,
    "joint_velocity": 7,
}

_FEATURES = "tensorflow_datasets.core.features"


def features() -> dict[str, Any]:
    """The content of `features.json`: DROID 1.0.0's nested schema."""
    observation = {name: _tensor(size) for name, size in OBSERVATION_SIZES.items()}
    observation |= {name: _image(description) for name, description in CAMERAS.items()}
    steps = {
        "action": _tensor(7),
        "action_dict": _dict({name: _tensor(size) for name, size in COMMAND_SIZES.items()}),
        "observation": _dict(observation),
        **{name: _scalar("float32") for name in ("discount", "reward")},
        **{name: _scalar("bool") for name in ("is_first", "is_last", "is_terminal")},
        **{name: _text() for name in LANGUAGES},
    }
    dataset = {
        "pythonClassName": f"{_FEATURES}.dataset_feature.Dataset",
        "sequence": {"feature": _dict(steps), "length": "-1"},
    }
    metadata = _dict({"file_path": _text(), "recording_folderpath": _text()})
    return _dict({"episode_metadata": metadata, "steps": dataset})


def dataset_info(name: str, shard_lengths: list[int], num_bytes: int) -> dict[str, Any]:
    """The content of `dataset_info.json`; `num_bytes` counts the records without their framing."""
    return {
        "description": "A Franka Panda in physics simulation, in DROID's schema. Made by "
        "scripts/make_sample_droid.py.",
        "fileFormat": "tfrecord",
        "moduleName": "__main__",
        "name": name,
        "releaseNotes": {VERSION: "Initial release."},
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": "train",
                "numBytes": str(num_bytes),
                "shardLengths": [str(length) for length in shard_lengths],
            }
        ],
        "version": VERSION,
    }


def _dict(members: dict[str, Any]) -> dict[str, Any]:
    return {
        "featuresDict": {"features": members},
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
    }


def _tensor(size: int) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_FEATURES}.tensor_feature.Tensor",
        "tensor": {"dtype": "float64", "encoding": "none", "shape": {"dimensions": [str(size)]}},
    }


def _scalar(dtype: str) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_FEATURES}.scalar.Scalar",
        "tensor": {"dtype": dtype, "encoding": "none", "shape": {}},
    }


def _text() -> dict[str, Any]:
    return {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}


def _image(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "image": {
            "dtype": "uint8",
            "encodingFormat": "jpeg",
            "shape": {"dimensions": [str(HEIGHT), str(WIDTH), "3"]},
        },
        "pythonClassName": f"{_FEATURES}.image_feature.Image",
    }
