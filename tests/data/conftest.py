"""Fixtures that make data sets and records from the reference shards, for `mcr.data`."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mcr.data.pictures import decode
from mcr.data.tf_example import encode_example, parse_example
from mcr.data.tfrecord import read_records, write_records
from tests.data.formats import FORMATS, record_episodes
from tests.episodes import read_episodes

REFERENCE = Path(__file__).parent / "droid_tfds"


@pytest.fixture(scope="session")
def expected() -> list[dict]:
    """Texts, length and hashes of each reference record, in file order; see droid_tfds/README."""
    return json.loads((REFERENCE / "expected.json").read_text())


@pytest.fixture(scope="session")
def expected_numbers():
    """`<record>/<field>` -> array; see droid_tfds/README."""
    return dict(np.load(REFERENCE / "expected.npz"))


@pytest.fixture(scope="session")
def reference_index(reference, tmp_path_factory):
    """The index of the reference shards, for tests that only read it."""
    from mcr.data.index import open_index  # not every test of this folder needs the index

    return open_index(reference, tmp_path_factory.mktemp("reference") / "index", workers=1)


@pytest.fixture(scope="session")
def episode(reference):
    """The first episode of the reference shards: 41 steps."""
    return read_episodes(reference)[0]


@pytest.fixture(scope="session")
def make_features(reference):
    """make_features(length, file_path=None, record=0) -> features of a short episode."""
    payloads = [
        r.payload for shard in sorted(reference.glob("*tfrecord*")) for r in read_records(shard)
    ]

    def make(length: int, file_path: str | None = None, record: int = 0) -> dict:
        features = {}
        for key, feature in parse_example(payloads[record]).items():
            values = _values(feature)
            if key.startswith("steps/"):
                size = len(values) // len(parse_example(payloads[record])["steps/is_first"].ints())
                values = values[: length * size]
            features[key] = values
        if file_path is not None:
            features["episode_metadata/file_path"] = [file_path.encode()]
        return features

    return make


def _values(feature):
    try:
        return [bytes(item) for item in feature.byte_strings()]
    except ValueError:
        pass
    try:
        return feature.floats()
    except ValueError:
        return feature.ints()


def write_shards(root: Path, features_json: Path, name: str, shards: list[list[dict]]) -> Path:
    """A folder in DROID's layout, without dataset_info.json: [[features, ...] per shard]."""
    root.mkdir(parents=True)
    shutil.copyfile(features_json, root / "features.json")
    for number, episodes in enumerate(shards):
        path = root / f"{name}-train.tfrecord-{number:05d}-of-{len(shards):05d}"
        write_records(path, map(encode_example, episodes))
    return root


@pytest.fixture
def make_dataset(tmp_path, reference):
    """make_dataset([[features, ...] per shard], name="made") -> folder in DROID's layout."""

    def make(shards: list[list[dict]], name: str = "made") -> Path:
        root = write_shards(tmp_path / name / "1.0.0", reference / "features.json", name, shards)
        info = {"splits": [{"name": "train", "shardLengths": [str(len(s)) for s in shards]}]}
        (root / "dataset_info.json").write_text(json.dumps(info))
        return root

    return make


@pytest.fixture(scope="session")
def make_large(reference, make_features, tmp_path_factory, file_path):
    """make_large(num_shards, episodes, length) -> folder with enough work to kill a run in it.

    episodes: per shard; length: in steps, as far as the reference's episodes go
    """

    def make(num_shards: int, episodes: int, length: int) -> Path:
        shards = [
            [
                make_features(length, file_path(episodes * shard + i), record=i)
                for i in range(episodes)
            ]
            for shard in range(num_shards)
        ]
        root = tmp_path_factory.mktemp("large") / "1.0.0"
        return write_shards(root, reference / "features.json", "large", shards)

    return make


@pytest.fixture(scope="session")
def digest():
    """digest(root) -> path relative to it -> SHA-256, of every file and folder below it.

    For a PNG the pixels are hashed: once in many thousand pictures, igzip finds one match less.
    """

    def content(path: Path) -> bytes:
        if not path.is_file():
            return b""
        data = path.read_bytes()
        return decode(data).tobytes() if path.suffix == ".png" else data

    def make(root: Path) -> dict[str, str]:
        return {
            str(path.relative_to(root)): hashlib.sha256(content(path)).hexdigest()
            for path in sorted(root.rglob("*"))
        }

    return make


@pytest.fixture(scope="session")
def file_path():
    """file_path(second=0, lab="AUTOLab") -> a path as DROID states it."""

    def make(second: int = 0, lab: str = "AUTOLab") -> str:
        recording = f"Fri_Jul__7_09:42:{second:02d}_2023"
        return f"gs://bucket/r2d2-data-full/{lab}/success/2023-07-07/{recording}/trajectory.h5"

    return make


@pytest.fixture(scope="module")
def recorded():
    """Four episodes; see formats.py."""
    return record_episodes()


@pytest.fixture(scope="module")
def data_sets(recorded, tmp_path_factory):
    """The same episodes in every format: format -> data set."""
    root = tmp_path_factory.mktemp("formats")
    return {name: write(root, recorded) for name, write in FORMATS.items()}
