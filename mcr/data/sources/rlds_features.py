"""The fields of RLDS records: what `features.json` says of them, and how an episode is read.

A record is one episode, a `tf.train.Example`. Features of steps are called `steps/...` in it and
hold the values of all steps one after the other. A schema calls them by their path without
`steps/`; features of the episode by their whole path:

    observation/image_0   action   action/world_vector   episode_metadata/file_path

Float fields are stored as float32, integers and bools as int64. Texts of steps are repeated in
every step. Sequences inside a step, audio and tensors in another encoding are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from mcr.data import pictures
from mcr.data.episode import FLAGS, Episode, Origin, Pictures
from mcr.data.regular_files import read_json
from mcr.data.schema import RecordingSchema
from mcr.data.sources.source import DAMAGE, sentence
from mcr.data.tf_example import Feature
from mcr.data.tfrecord import BadRecord, Record
from mcr.errors import UserError

STEPS = "steps"


@dataclass(frozen=True)
class Field:
    """One field of a record.

    feature: its name in the Example, for example steps/observation/state
    kind:    "picture", "number" or "text"
    dtype:   as `features.json` states it
    shape:   of the value of one step, or of the episode
    """

    feature: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """What a schema calls it."""
        return self.feature.removeprefix(f"{STEPS}/")

    @property
    def is_of_steps(self) -> bool:
        """Does it hold a value for each step, not one for the episode?"""
        return self.feature.startswith(f"{STEPS}/")

    @property
    def size(self) -> int:
        """How many numbers one value has."""
        return math.prod(self.shape)


def read_fields(path: Path) -> list[Field]:
    """Read `features.json`. Raises UserError if it does not describe episodes of steps."""
    try:
        features = read_json(path)["featuresDict"]["features"]
        if STEPS not in features:
            raise ValueError(f"no feature {STEPS!r}; it has {', '.join(features)}")
        fields = [
            field
            for name, feature in features.items()
            for field in _flatten(
                feature["sequence"]["feature"] if name == STEPS else feature, name
            )
        ]
    except DAMAGE as error:
        raise UserError(
            f"{path}: does not describe RLDS episodes ({type(error).__name__}: {error}); download "
            "it again, or write it with tensorflow_datasets"
        ) from error
    return sorted(fields, key=_order)


def _flatten(feature: dict[str, Any], name: str) -> Iterator[Field]:
    if "featuresDict" in feature:
        for part, inner in feature["featuresDict"]["features"].items():
            yield from _flatten(inner, f"{name}/{part}")
    elif "image" in feature:
        yield Field(name, "picture", feature["image"].get("dtype") or "uint8")
    elif "text" in feature:
        yield Field(name, "text")
    elif "classLabel" in feature:
        yield Field(name, "number", "int64")
    elif "tensor" in feature:
        tensor = feature["tensor"]
        shape = tuple(int(n) for n in tensor.get("shape", {}).get("dimensions", ()))
        if tensor["dtype"] in ("string", "object"):
            if not shape:
                yield Field(name, "text")
        elif tensor.get("encoding", "none") == "none" and all(n > 0 for n in shape):
            yield Field(name, "number", tensor["dtype"], shape)


def _order(field: Field) -> tuple[bool, bool, str]:
    """Sort observations first, then actions, then what else there is, flags last."""
    return not field.key.startswith("observation/"), field.key in FLAGS, field.key


# --------------------------------------------------------------------------- records


@dataclass(frozen=True)
class Layout:
    """What is read of every record, and what it is called.

    cameras:   camera -> name of its feature
    present:   camera -> name of the feature that says whether the episode has it
    signals:   signal -> field
    languages: names of the features of the instructions
    file_path: name of the feature that holds the path of the original recording, or ""
    recording: what that path tells
    """

    cameras: Mapping[str, str]
    present: Mapping[str, str]
    signals: Mapping[str, Field]
    languages: tuple[str, ...]
    file_path: str
    recording: RecordingSchema

    def origin(self, example: Mapping[str, Feature], fallback: str, split: str) -> Origin:
        """Return where the episode comes from. Raises ValueError for a missing or unsafe path."""
        path = first_text(_require(example, self.file_path)) if self.file_path else ""
        return Origin.of(self.recording, path, fallback, split)

    def parse(self, record: Record, key: str, fallback: str, split: str) -> Episode:
        """Decode a record, but not its pictures.

        key:      of the episode
        fallback: its name, unless its path tells it

        Raises BadRecord, which names shard, byte, field and sizes.
        """
        example = record.example()
        try:
            cameras = self._cameras(example)
            length = self._length(example, cameras)
            return Episode(
                key=key,
                length=length,
                signals=self._signals(example, length),
                pictures={
                    camera: _frames(_require(example, self.cameras[camera]), camera, length, record)
                    for camera in cameras
                },
                texts=tuple(first_text(example.get(name)) for name in self.languages),
                origin=self.origin(example, fallback, split),
                payload=record.payload or b"",
                payload_offset=record.offset,
            )
        except DAMAGE as error:
            raise BadRecord(record.path, record.offset, sentence(error)) from error

    def _length(self, example: Mapping[str, Feature], cameras: list[str]) -> int:
        """Return the number of steps: that of a flag, or of a camera's frames."""
        flag = next((flag for flag in FLAGS if flag in self.signals), None)
        if flag is not None:
            length = len(_require(example, self.signals[flag].feature).ints())
        else:
            length = len(_require(example, self.cameras[cameras[0]]).byte_ranges()[0])
        if length == 0:
            raise ValueError("the episode has no steps")
        return length

    def _cameras(self, example: Mapping[str, Feature]) -> list[str]:
        """Return the cameras that the episode has.

        Some shards were written without setting the flags. So flags that deny every camera are not
        believed: then a camera is absent if its first frame has a single colour.
        """
        flags = {c: _require(example, name).ints().any() for c, name in self.present.items()}
        found = [camera for camera in self.cameras if flags.get(camera, True)]
        if not found:
            found = [c for c, name in self.cameras.items() if _is_picture(example.get(name))]
        if not found:
            raise ValueError(f"the episode has none of the cameras {', '.join(self.cameras)}")
        return found

    def _signals(self, example: Mapping[str, Feature], length: int) -> dict[str, np.ndarray]:
        return {
            name: _numbers(_require(example, field.feature), field, length)
            for name, field in self.signals.items()
        }


def _require(example: Mapping[str, Feature], feature: str) -> Feature:
    if feature not in example:
        raise ValueError(f"the field {feature} is missing")
    return example[feature]


def _numbers(feature: Feature, field: Field, length: int) -> np.ndarray:
    """Return float32 [T, D] or [T]; flags as bool [T]."""
    is_float = "float" in field.dtype
    values = feature.floats() if is_float else feature.ints()
    if len(values) != length * field.size:
        raise ValueError(
            f"the field {field.feature} has {len(values)} numbers; {length} steps of {field.size} "
            "expected"
        )
    if field.key in FLAGS and not field.shape:
        return values.astype(bool)
    values = values.astype(np.float32, copy=False)
    return values.reshape(length, field.size) if field.shape else values


def _frames(feature: Feature, camera: str, length: int, record: Record) -> Pictures:
    """Return where the frames of a camera lie in the shard."""
    starts, lengths = feature.byte_ranges()
    if len(starts) != length:
        raise ValueError(f"the camera {camera} has {len(starts)} frames; {length} steps expected")
    try:
        size = pictures.size_of(feature.first_bytes())
    except ValueError as error:
        raise ValueError(f"{camera} at step 0: {error}") from error
    # The frames of a camera follow each other, so one call covers all of them. It also covers the
    # two or three bytes before each frame that say how long it is.
    begin, end = int(starts[0]), int(starts[-1] + lengths[-1])
    span = np.frombuffer(feature.buffer, np.uint8, end - begin, begin)
    return Pictures(
        size=size,
        checksum=google_crc32c.value(span),
        file=record.path.name,
        offsets=starts + record.offset,
        lengths=lengths.astype(np.int32),
    )


def _is_picture(feature: Feature | None) -> bool:
    """Does the first frame have more than one colour?"""
    return feature is not None and bool(np.ptp(pictures.decode(feature.first_bytes())))


def first_text(feature: Feature | None) -> str:
    """Return the first of a list of texts; "" if there is none. Raises ValueError."""
    return bytes(feature.first_bytes()).decode("utf-8") if feature else ""
