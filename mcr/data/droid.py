"""DROID's RLDS schema: record -> Episode.

A data set is a folder `<dir>/{dataset_info.json, features.json, <name>-train.tfrecord-*}`. A record
is one episode. Nothing here depends on the base name of the shards or on the prefix of `file_path`.
Sizes are read from `features.json`, so data of another robot in the same schema can be read.

What the fields mean, checked on all 32,212 steps of droid_100:
- `action` is the absolute commanded pose (xyz + Euler angles, base frame) followed by the commanded
  gripper position: `action_dict/cartesian_position` + `action_dict/gripper_position`. The
  documentation says joint velocities, but velocities are only in `action_dict`.
- float64 fields are stored as float32, bools as int64. Instructions are repeated in every step.
- Nothing is normalised. Euler angles wrap at +-pi.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcr.data.episode import FLAGS, LANGUAGES, OBSERVATIONS, Episode
from mcr.data.tf_example import Feature, parse_example
from mcr.data.tfrecord import BadRecord, Record, read_records
from mcr.errors import UserError

EXTERIOR_CAMERAS = ("exterior_image_1_left", "exterior_image_2_left")
_SHARD = re.compile(r"\.tfrecord-(\d{5,})-of-(\d{5,})$")


@dataclass(frozen=True)
class RldsDataset:
    """The shards of one split and the sizes of their fields.

    shards:   all shards in the folder, in the order of their numbers
    sizes:    "action" -> 7, "action_dict/joint_velocity" -> 7, "discount" -> 0 (a scalar), ...
    cameras:  names of the camera fields
    episodes: number of records that each shard should hold; None if `dataset_info.json` is absent
    """

    root: Path
    shards: tuple[Path, ...]
    sizes: dict[str, int]
    cameras: tuple[str, ...]
    episodes: tuple[int, ...] | None

    @classmethod
    def open(cls, root: str | Path) -> RldsDataset:
        """Find the shards below `root`. Raises UserError if it is no RLDS data set.

        root: the version folder, or a folder with a single version inside
        """
        root = Path(root)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give the data set's version folder")
        if not (root / "features.json").is_file():
            versions = sorted(path.parent for path in root.glob("*/features.json"))
            if len(versions) != 1:
                found = f"; choose one of {[str(v) for v in versions]}" if versions else ""
                raise UserError(
                    f"{root}: no features.json; give the RLDS version folder (droid/1.0.1){found}"
                )
            root = versions[0]
        shards = _find_shards(root)
        sizes, cameras = _read_schema(root / "features.json")
        return cls(root, shards, sizes, cameras, _shard_lengths(root, shards))

    def narrow(self, number: int) -> RldsDataset:
        """Return the data set with only one of its shards, which is small enough for a worker."""
        episodes = self.episodes and (self.episodes[number],)
        return replace(self, shards=(self.shards[number],), episodes=episodes)

    def records(self, shard: Path) -> Iterator[Record]:
        """Yield every record that a shard should hold, in order, with damaged and lost ones.

        A shard that ends early (see `read_records`) yields one damaged record per lost episode if
        `dataset_info.json` says how many there should be.
        """
        count = 0
        for record in read_records(shard):
            count += 1
            yield record
            del record  # before the next one is read: a long episode is over 100 MB
        expected = self.episodes[self.shards.index(shard)] if self.episodes else count
        for number in range(count, expected):
            problem = f"episode {number + 1} of {expected} is lost: the shard ends before it"
            yield Record(shard, shard.stat().st_size, None, problem)

    def parse(self, record: Record) -> Episode:
        """Decode a record. Raises BadRecord naming shard, offset, field and sizes."""
        example = record.example()
        try:
            return self._parse(example, record)
        except BadRecord:
            raise
        except (ValueError, IndexError) as error:
            raise BadRecord(record.path, record.offset, str(error)) from error

    def _parse(self, example: dict[str, Feature], record: Record) -> Episode:
        def feature(key: str) -> Feature:
            if key not in example:
                raise ValueError(f"the field {key} is missing")
            return example[key]

        length = len(feature("steps/is_first").ints())
        if length == 0:
            raise ValueError("the episode has no steps")
        signals = {}
        for name, size in self.sizes.items():
            key = f"steps/observation/{name}" if name in OBSERVATIONS else f"steps/{name}"
            values = feature(key).ints() if name in FLAGS else feature(key).floats()
            if len(values) != length * max(size, 1):
                raise ValueError(
                    f"the field {key} has {len(values)} numbers; {length} steps of {size} expected"
                )
            signals[name] = values.reshape(length, size) if size else values
            if name in FLAGS:
                signals[name] = signals[name].astype(bool)
        frame_ranges = {}
        for camera in self.cameras:
            starts, lengths = feature(f"steps/observation/{camera}").byte_ranges()
            if len(starts) != length:
                raise ValueError(
                    f"the camera {camera} has {len(starts)} frames; {length} steps expected"
                )
            frame_ranges[camera] = starts, lengths
        episode = Episode(
            payload=record.payload or b"",
            frame_ranges=frame_ranges,
            signals=signals,
            languages={key: _first_text(example.get(f"steps/{key}")) for key in LANGUAGES},
            file_path=_first_text(feature("episode_metadata/file_path")),
            recording_folderpath=_first_text(example.get("episode_metadata/recording_folderpath")),
        )
        _ = episode.origin  # an unsafe file_path is a defect of the record: report it here
        return episode


def scan_file_paths(shard: Path) -> list[str]:
    """Return `file_path` of every record, in order; "" if a record has none.

    This reads a few pages per record and computes no checksum. Names must be known before the work
    is split, and the reader that follows checks every byte.
    """
    if shard.stat().st_size == 0:
        return []
    paths = []
    with shard.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        buffer.madvise(mmap.MADV_RANDOM)
        position = 0
        while position + 12 <= len(buffer):
            (length,) = struct.unpack_from("<Q", buffer, position)
            start = position + 12
            if start + length > len(buffer):
                break
            paths.append(_file_path_within(buffer, start, start + length))
            position = start + length + 4
    return paths


def _file_path_within(buffer: Any, start: int, end: int) -> str:
    try:
        feature = parse_example(buffer, start, end).get("episode_metadata/file_path")
        return _first_text(feature)
    except (ValueError, IndexError):
        return ""


def _first_text(feature: Feature | None) -> str:
    texts = feature.byte_strings() if feature else []
    return bytes(texts[0]).decode("utf-8") if texts else ""


def _find_shards(root: Path) -> tuple[Path, ...]:
    found = {}
    for path in root.iterdir():
        match = _SHARD.search(path.name)
        if match and not path.name.startswith("."):
            found[path.name] = (int(match[1]), int(match[2]), path)
    if not found:
        raise UserError(f"{root}: no shards (*.tfrecord-00000-of-00031); is the download complete?")
    totals = {total for _, total, _ in found.values()}
    present = {number for number, _, _ in found.values()}
    if len(totals) > 1 or len(present) < len(found):
        raise UserError(f"{root}: shards of several data sets lie in one folder; keep one")
    return tuple(path for _, _, path in sorted(found.values()))


def missing_shards(shards: tuple[Path, ...]) -> list[int]:
    """Return the numbers of the shards that the folder lacks."""
    numbers, total = _shard_numbers(shards)
    return sorted(set(range(total)) - set(numbers))


def _shard_numbers(shards: tuple[Path, ...]) -> tuple[list[int], int]:
    """Return the numbers of the shards, and how many shards a complete data set has."""
    matches = [match for path in shards if (match := _SHARD.search(path.name))]
    return [int(match[1]) for match in matches], int(matches[0][2])


def _read_schema(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return sizes of the numeric fields and names of the cameras."""
    try:
        features = json.loads(path.read_text())["featuresDict"]["features"]
        steps = features["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        observation = steps["observation"]["featuresDict"]["features"]
        action_dict = steps["action_dict"]["featuresDict"]["features"]
        sizes = {name: _size(observation[name]) for name in OBSERVATIONS}
        sizes["action"] = _size(steps["action"])
        sizes |= {f"action_dict/{name}": _size(f) for name, f in sorted(action_dict.items())}
        sizes |= {name: 0 for name in ("discount", "reward", *FLAGS) if name in steps}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not DROID's schema ({type(error).__name__}: {error}); "
            "compare with resources/sample_droid/1.0.0/features.json"
        ) from error
    cameras = tuple(sorted(name for name, feature in observation.items() if "image" in feature))
    return sizes, cameras


def _size(feature: dict[str, Any]) -> int:
    (size,) = feature["tensor"]["shape"]["dimensions"]
    return int(size)


def _shard_lengths(root: Path, shards: tuple[Path, ...]) -> tuple[int, ...] | None:
    """Return the records per shard; None if `dataset_info.json` is absent or of other shards."""
    path = root / "dataset_info.json"
    if not path.is_file():
        return None
    try:
        splits = json.loads(path.read_text())["splits"]
        lengths = tuple(int(n) for split in splits for n in split["shardLengths"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a TFDS dataset_info.json ({error})") from error
    numbers, total = _shard_numbers(shards)
    return tuple(lengths[number] for number in numbers) if len(lengths) == total else None
