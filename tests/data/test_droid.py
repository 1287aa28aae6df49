import hashlib
import json

import numpy as np
import pytest

from mcr.data.droid import RldsDataset, missing_shards, scan_file_paths
from mcr.data.episode import LANGUAGES, OBSERVATIONS
from mcr.data.tf_example import encode_example
from mcr.data.tfrecord import BadRecord, read_records, write_records
from mcr.errors import UserError


def episodes_of(root):
    dataset = RldsDataset.open(root)
    return [dataset.parse(record) for shard in dataset.shards for record in dataset.records(shard)]


def test_every_picture_and_text_is_what_tensorflow_reads(reference, expected):
    episodes = episodes_of(reference)
    assert len(episodes) == len(expected) == 4
    for episode, facts in zip(episodes, expected, strict=True):
        assert episode.length == facts["length"]
        assert episode.file_path == facts["file_path"]
        assert episode.recording_folderpath == facts["recording_folderpath"]
        assert episode.languages == {key: facts[key] for key in LANGUAGES}
        for camera, hashes in facts["jpeg_sha256"].items():
            frames = [episode.encoded_frame(camera, step) for step in range(episode.length)]
            assert [hashlib.sha256(frame).hexdigest() for frame in frames] == hashes


def test_every_number_is_what_tensorflow_reads(reference, expected_numbers):
    compared = 0
    for number, episode in enumerate(episodes_of(reference)):
        for name, values in episode.signals.items():
            key = f"observation/{name}" if name in OBSERVATIONS else name
            reference_values = expected_numbers[f"{number}/{key}"]
            assert values.shape == reference_values.shape
            assert (values.astype(reference_values.dtype) == reference_values).all()
            compared += 1
    assert compared == len([key for key in expected_numbers if "/pixels/" not in key]) == 60


def test_the_schema_gives_sizes_and_cameras(reference):
    dataset = RldsDataset.open(reference)
    assert dataset.sizes["action"] == 7 and dataset.sizes["action_dict/joint_velocity"] == 7
    assert dataset.sizes["cartesian_position"] == 6 and dataset.sizes["discount"] == 0
    assert dataset.cameras == ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
    assert dataset.episodes == (2, 2)
    assert RldsDataset.open(reference.parent) == dataset  # a single version inside


def test_data_of_another_robot_is_read(make_dataset, make_features):
    features = make_features(6)
    features["steps/action"] = np.arange(60.0)
    root = make_dataset([[features]])
    schema = json.loads((root / "features.json").read_text())
    steps = schema["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    steps["features"]["action"]["tensor"]["shape"]["dimensions"] = ["10"]
    (root / "features.json").write_text(json.dumps(schema))
    (episode,) = episodes_of(root)
    np.testing.assert_array_equal(episode.signals["action"], np.arange(60.0).reshape(6, 10))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("steps/action", None, "steps/action is missing"),
        ("steps/action", np.zeros(41), "41 numbers; 6 steps of 7"),
        ("steps/action", np.zeros(42, int), "expected a float_list"),
        ("steps/is_first", np.zeros(0, int), "no steps"),
        ("steps/is_last", np.zeros(5, int), "is_last has 5 numbers"),
        ("steps/observation/joint_position", None, "joint_position is missing"),
        ("steps/observation/wrist_image_left", [b""] * 5, "wrist_image_left has 5 frames; 6"),
        ("steps/observation/wrist_image_left", None, "wrist_image_left is missing"),
        ("episode_metadata/file_path", None, "file_path is missing"),
        ("episode_metadata/file_path", [b"a/b"], "fewer than three"),
        ("episode_metadata/file_path", [b"x/../../trajectory.h5"], "unsafe component '..'"),
        ("episode_metadata/file_path", [b"x/2023/..\\evil/t.h5"], "unsafe component '..'"),
        ("episode_metadata/file_path", [b"x/2023/a\x00b/t.h5"], "unsafe component"),
        ("episode_metadata/file_path", [b"x/2023/.hidden/t.h5"], "unsafe component"),
        ("episode_metadata/file_path", [b"x/2023//t.h5"], "unsafe component ''"),
        ("episode_metadata/file_path", [b"x/2023/\xff/t.h5"], "utf-8"),
        ("episode_metadata/file_path", [b"x/2023/" + b"n" * 300 + b"/t.h5"], "over 200 bytes"),
    ],
)
def test_a_bad_field_is_reported_with_shard_and_offset(
    make_dataset, make_features, key, value, message
):
    features = make_features(6)
    if value is None:
        del features[key]
    else:
        features[key] = value
    dataset = RldsDataset.open(make_dataset([[make_features(6), features]]))
    good, bad = dataset.records(dataset.shards[0])
    assert dataset.parse(good).length == 6
    with pytest.raises(BadRecord, match=message) as caught:
        dataset.parse(bad)
    assert caught.value.path == dataset.shards[0] and caught.value.offset == bad.offset


def test_absent_instructions_are_empty(make_dataset, make_features):
    features = make_features(3)
    del features["steps/language_instruction_2"]
    (episode,) = episodes_of(make_dataset([[features]]))
    assert episode.languages["language_instruction_2"] == ""
    assert episode.languages["language_instruction"] != ""


def test_lost_episodes_of_a_truncated_shard_are_counted(shards):
    dataset = RldsDataset.open(shards)
    shard = dataset.shards[0]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size - 100])
    records = list(dataset.records(shard))
    assert [record.payload is not None for record in records] == [True, False]
    shard.write_bytes(b"")
    assert [r.problem for r in dataset.records(shard)] == [
        "episode 1 of 2 is lost: the shard ends before it",
        "episode 2 of 2 is lost: the shard ends before it",
    ]


def test_missing_shards_of_a_partial_download_are_listed(shards):
    first, _ = RldsDataset.open(shards).shards
    first.unlink()
    dataset = RldsDataset.open(shards)
    assert missing_shards(dataset.shards) == [0]
    assert dataset.episodes == (2,)
    assert len(list(dataset.records(dataset.shards[0]))) == 2


def test_scanning_gives_the_paths_that_reading_gives(reference, expected):
    dataset = RldsDataset.open(reference)
    scanned = [path for shard in dataset.shards for path in scan_file_paths(shard)]
    assert scanned == [facts["file_path"] for facts in expected]


def test_scanning_damaged_shards(tmp_path, make_features, file_path):
    shard = tmp_path / "x.tfrecord-00000-of-00001"
    features = [make_features(2, file_path(second)) for second in range(3)]
    features[1]["episode_metadata/file_path"] = [b"\xff"]
    write_records(shard, map(encode_example, features))
    assert scan_file_paths(shard) == [file_path(0), "", file_path(2)]
    data = shard.read_bytes()
    for size in (0, 5, 11, len(data) - 1, len(data) // 2):
        shard.write_bytes(data[:size])
        whole = [record for record in read_records(shard) if record.payload is not None]
        assert len(scan_file_paths(shard)) == len(whole) or size == len(data) - 1


def test_a_folder_without_a_data_set_is_refused_with_the_fix(tmp_path, shards):
    with pytest.raises(UserError, match="no such folder"):
        RldsDataset.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no features\.json.*version folder"):
        RldsDataset.open(tmp_path / "empty")
    other = shards / "other-train.tfrecord-00000-of-00003"
    other.write_bytes(b"")
    with pytest.raises(UserError, match="several data sets"):
        RldsDataset.open(shards)
    other.unlink()
    (shards / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"dataset_info\.json"):
        RldsDataset.open(shards)
    (shards / "features.json").write_text('{"featuresDict": {"features": {}}}')
    with pytest.raises(UserError, match="not DROID's schema"):
        RldsDataset.open(shards)
    for shard in shards.glob("*tfrecord*"):
        shard.unlink()
    with pytest.raises(UserError, match="no shards"):
        RldsDataset.open(shards)
