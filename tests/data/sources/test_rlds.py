"""RLDS shards: what TensorFlow Datasets reads back, schemas of all kinds, and what is damaged."""

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from mcr.data.episode import FLAGS, Episode
from mcr.data.pictures import encode_jpeg, encode_png
from mcr.data.schema import LANGUAGES, Schema
from mcr.data.sources.rlds import RldsSource
from mcr.data.tf_example import encode_example
from mcr.data.tfrecord import read_records, write_records
from mcr.errors import UserError
from tests.episodes import read_episodes

OXE = Path(__file__).parents[1] / "reference" / "oxe"
STATE = ("cartesian_position", "gripper_position", "joint_position")


def entries_of(root: Path, schema: Schema | None = None) -> list[Episode | str]:
    return [entry for part in RldsSource(root, schema).parts() for entry in part.episodes()]


# --------------------------------------------------------------------------- what others read back


@pytest.mark.parametrize("name", ["bridge_like", "dict_action"])
def test_everything_is_what_tensorflow_datasets_reads(name):
    """Lengths, texts and paths, the bytes of every picture by its range, and every number."""
    expected = json.loads((OXE / name / "expected.json").read_text())
    numbers = dict(np.load(OXE / name / "expected.npz"))
    source = RldsSource(OXE / name)
    facts = [
        (split, number, fact) for split in expected for number, fact in enumerate(expected[split])
    ]
    compared = 0
    for episode, (split, number, fact) in zip(read_episodes(OXE / name), facts, strict=True):
        assert episode.length == fact["length"]
        assert episode.origin.split == split
        assert episode.origin.file_path == fact["metadata"].get("file_path", "")
        assert episode.texts == tuple(fact["text"].values())
        assert {source.cameras[c] for c in episode.pictures} == set(fact["jpeg_or_png_sha256"])
        for camera, places in episode.pictures.items():
            data = (source.root / places.file).read_bytes()
            hashes = [
                hashlib.sha256(data[offset : offset + length]).hexdigest()
                for offset, length in zip(places.offsets, places.lengths, strict=True)
            ]
            assert hashes == fact["jpeg_or_png_sha256"][source.cameras[camera]]
            assert [
                hashlib.sha256(episode.encoded_frame(camera, step)).hexdigest()
                for step in range(episode.length)
            ] == hashes
        for signal, values in episode.signals.items():
            key = f"{split}/{number}/{signal}"
            reference = numbers.get(key, numbers.get(f"{split}/{number}/observation/{signal}"))
            assert values.dtype == (bool if signal in FLAGS else np.float32)
            assert np.array_equal(values, reference.reshape(values.shape)), signal
            compared += 1
    assert compared == len(numbers)


def test_a_schema_of_open_x_embodiment_has_its_own_names():
    source = RldsSource(OXE / "dict_action")
    assert source.name == "dict_action"
    assert source.cameras == {"image": "observation/image"}
    assert source.schema.language == ("observation/natural_language_instruction",)
    shapes = {name: v.shape for name, v in read_episodes(OXE / "dict_action")[0].signals.items()}
    assert shapes == {
        "base_pose_tool_reached": (25, 7),
        "gripper_closed": (25, 1),
        "orientation_box": (25, 6),
        "action/gripper_closedness_action": (25, 1),
        "action/rotation_delta": (25, 3),
        "action/terminate_episode": (25, 3),
        "action/world_vector": (25, 3),
        "reward": (25,),
        "is_first": (25,),
        "is_last": (25,),
        "is_terminal": (25,),
    }


def test_every_picture_and_text_of_droid_is_what_tensorflow_reads(reference, expected):
    episodes = read_episodes(reference)
    assert len(episodes) == len(expected) == 4
    for episode, facts in zip(episodes, expected, strict=True):
        assert episode.length == facts["length"]
        assert episode.origin.file_path == facts["file_path"]
        assert episode.texts == tuple(facts[key] for key in LANGUAGES)
        for camera, hashes in facts["jpeg_sha256"].items():
            frames = [episode.encoded_frame(camera, step) for step in range(episode.length)]
            assert [hashlib.sha256(frame).hexdigest() for frame in frames] == hashes


def test_every_number_of_droid_is_what_tensorflow_reads(reference, expected_numbers):
    compared = 0
    for number, episode in enumerate(read_episodes(reference)):
        for name, values in episode.signals.items():
            key = f"observation/{name}" if name in STATE else name
            reference_values = expected_numbers[f"{number}/{key}"]
            assert values.shape == reference_values.shape
            assert (values.astype(reference_values.dtype) == reference_values).all()
            compared += 1
    assert compared == len([key for key in expected_numbers if "/pixels/" not in key]) == 60


def test_droid_is_recognised_by_its_cameras_and_signals(make_dataset, make_features, reference):
    root = make_dataset([[make_features(2)]], "of_another_name")
    source = RldsSource(root)
    assert source.schema.title == "DROID" and source.schema.hz == 15
    assert tuple(source.cameras) == (
        "exterior_image_1_left",
        "exterior_image_2_left",
        "wrist_image_left",
    )
    assert source.schema.default_cameras == tuple(source.cameras)[:2]
    assert tuple(read_episodes(root)[0].signals) == (
        *STATE,
        "action",
        *(
            f"action_dict/{kind}"
            for kind in (
                "cartesian_position",
                "cartesian_velocity",
                "gripper_position",
                "gripper_velocity",
                "joint_position",
                "joint_velocity",
            )
        ),
        "discount",
        "reward",
        *FLAGS,
    )
    assert RldsSource(reference.parent).root == reference  # a single version inside


def test_origins_of_droid(make_dataset, make_features, file_path):
    paths = [
        file_path(23),
        "2023-07-07/Fri/trajectory.h5",
        "failure\\2023-07-07\\Fri\\t.h5",
        "lab/unknown/2023-07-07/Fri/t.h5",
    ]
    root = make_dataset([[make_features(2, path) for path in paths]])
    origins = [episode.origin for episode in read_episodes(root)]
    assert [(o.name, o.session, o.lab, o.outcome, o.date) for o in origins] == [
        (
            "2023-07-07_Fri_Jul__7_09_42_23_2023",
            "AUTOLab/2023-07-07",
            "AUTOLab",
            "success",
            "2023-07-07",
        ),
        ("2023-07-07_Fri", "/2023-07-07", "", "", "2023-07-07"),
        ("2023-07-07_Fri", "/2023-07-07", "", "failure", "2023-07-07"),
        ("2023-07-07_Fri", "lab/2023-07-07", "lab", "", "2023-07-07"),
    ]


def test_data_of_another_robot_is_read(make_dataset, make_features):
    features = make_features(6)
    features["steps/action"] = np.arange(60.0)
    root = make_dataset([[features]])
    schema = json.loads((root / "features.json").read_text())
    steps = schema["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    steps["features"]["action"]["tensor"]["shape"]["dimensions"] = ["10"]
    (root / "features.json").write_text(json.dumps(schema))
    (episode,) = read_episodes(root)
    np.testing.assert_array_equal(episode.signals["action"], np.arange(60.0).reshape(6, 10))


# --------------------------------------------------------------------------- small data sets

ONLY_SHARD = "small-train.tfrecord-00000-of-00001"
PICTURE = {"image": {"dtype": "uint8", "encodingFormat": "jpeg"}}
DEPTH = {"image": {"dtype": "uint16", "encodingFormat": "png"}}
TEXT = {"text": {}}


def tensor(*shape: int, dtype: str = "float32") -> dict:
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype}}


def group(features: dict) -> dict:
    return {"featuresDict": {"features": features}}


@pytest.fixture
def make_small(tmp_path):
    """make_small(steps, values, metadata, info, names) -> folder with a record per entry of values.

    steps, metadata: feature -> its entry in features.json; steps by path
    values: for each record, feature -> its content
    info:   content of dataset_info.json; names: of the shards, which get equal shares of records
    """

    def make(steps, values, metadata=None, info=None, names=(ONLY_SHARD,)):
        root = tmp_path / "small" / "0.1.0"
        root.mkdir(parents=True)
        features = group({"steps": {"sequence": {"feature": nested(steps)}}, **(metadata or {})})
        (root / "features.json").write_text(json.dumps(features))
        if info is not None:
            (root / "dataset_info.json").write_text(json.dumps(info))
        shares = np.array_split(np.arange(len(values)), len(names))
        for name, records in zip(names, shares, strict=True):
            write_records(root / name, [encode_example(values[i]) for i in records])
        return root

    return make


def nested(paths: dict) -> dict:
    observation = {k.partition("/")[2]: v for k, v in paths.items() if k.startswith("observation/")}
    plain = {k: v for k, v in paths.items() if not k.startswith("observation/")}
    return group({**plain, **({"observation": group(observation)} if observation else {})})


def jpegs(length: int, height: int = 8, width: int = 12, shade: int = 0) -> list[bytes]:
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    return [encode_jpeg((ramp + shade + step).astype(np.uint8)) for step in range(length)]


SMALL_STEPS = {"observation/image": PICTURE, "action": tensor(3)}


def small_values(length: int = 4, shade: int = 0) -> dict:
    return {
        "steps/observation/image": jpegs(length, shade=shade),
        "steps/action": np.arange(3.0 * length),
    }


def test_flags_discount_and_metadata_are_optional(make_small):
    root = make_small(SMALL_STEPS, [small_values(4), small_values(2)])
    first, second = read_episodes(root)
    assert (first.length, second.length) == (4, 2)
    assert set(first.signals) == {"action"} and first.texts == ()
    assert (first.origin.name, second.origin.name) == ("train_00000_0000", "train_00000_0001")
    assert first.origin.session == "train_00000_0000" and first.origin.file_path == ""


def test_names_count_the_records_of_the_split(make_small):
    info = {
        "name": "small",
        "splits": [
            {"name": "train", "shardLengths": ["2", "1"]},
            {"name": "val", "shardLengths": ["1"]},
        ],
    }
    names = [f"small-train.tfrecord-0000{i}-of-00002" for i in (0, 1)]
    root = make_small(SMALL_STEPS, [small_values() for _ in range(3)], info=info, names=names)
    write_records(root / "small-val.tfrecord-00000-of-00001", [encode_example(small_values())])
    found = [(e.key, e.origin.name, e.origin.split) for e in read_episodes(root)]
    assert found == [
        ("train-00000/0", "train_000000", "train"),
        ("train-00000/1", "train_000001", "train"),
        ("train-00001/0", "train_000002", "train"),
        ("val-00000/0", "val_000000", "val"),
    ]
    assert [e.origin.split for e in entries_of(root, Schema(splits=("val",)))] == ["val"]
    with pytest.raises(
        UserError, match="splits of the schema='vla' is unknown; did you mean 'val'"
    ):
        RldsSource(root, Schema(splits=("vla",)))
    (root / "small-val.tfrecord-00000-of-00001").unlink()
    assert RldsSource(root).missing() == ["val 0"]
    with pytest.raises(UserError, match="no shards of val"):
        RldsSource(root, Schema(splits=("val",)))


@pytest.mark.parametrize(
    "template, names",
    [
        ("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "small-{}.tfrecord-00000-of-00001"),
        ("{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "{}.tfrecord-00000-of-00001"),
        ("{DATASET}_{SPLIT}-{SHARD_INDEX}.{FILEFORMAT}", "small_{}-00000.tfrecord"),
        ("{SHARD_INDEX}of{NUM_SHARDS}_{SPLIT}.rlds", "00000of00001_{}.rlds"),
        ("{DATASET}-{SPLIT}.{FILEFORMAT}", "small-{}.tfrecord"),
    ],
)
def test_shards_are_found_by_any_template(make_small, template, names):
    splits = [
        {"name": name, "filepathTemplate": template, "shardLengths": ["1"]}
        for name in ("train", "test_2")
    ]
    info = {"name": "small", "splits": splits}
    files = [names.format("train"), names.format("test_2")]
    root = make_small(SMALL_STEPS, [small_values(3), small_values(5)], info=info, names=files)
    found = [(e.origin.name, e.length) for e in read_episodes(root)]
    assert found == [("train_000000", 3), ("test_2_000000", 5)]


def test_cameras_of_all_sizes_and_codecs(make_small):
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    steps = {**SMALL_STEPS, "observation/wrist": PICTURE, "observation/depth": DEPTH}
    values = {
        **small_values(2),
        "steps/observation/wrist": [encode_png(pixels), encode_png(pixels + 1)],
        "steps/observation/depth": [b"", b""],
    }
    (episode,) = read_episodes(make_small(steps, [values]))
    assert {c: p.size for c, p in episode.pictures.items()} == {"image": (8, 12), "wrist": (6, 5)}
    assert episode.encoded_frame("wrist", 1) == encode_png(pixels + 1)


def test_checksums_follow_the_pictures(make_small, tmp_path):
    values = [small_values(3, shade) for shade in (0, 0, 7)]
    same, again, other = (
        e.pictures["image"].checksum for e in read_episodes(make_small(SMALL_STEPS, values))
    )
    assert same == again != other


def test_a_schema_renames_cameras_and_reads_large_fields(make_small):
    steps = {**SMALL_STEPS, "embedding": tensor(100)}
    values = {**small_values(2), "steps/embedding": np.arange(200.0)}
    root = make_small(steps, [values])
    assert set(entries_of(root)[0].signals) == {"action"}
    schema = Schema(cameras={"front": "observation/image"}, signals=("embedding",))
    (episode,) = entries_of(root, schema)
    assert set(episode.pictures) == {"front"}
    assert np.array_equal(episode.signals["embedding"], np.arange(200.0).reshape(2, 100))


def test_numbers_of_all_types_become_float32(make_small):
    steps = {
        **SMALL_STEPS,
        "observation/contact": tensor(dtype="bool"),
        "observation/counts": tensor(2, dtype="int32"),
        "observation/label": {"classLabel": {"numClasses": "3"}},
        "action": tensor(3, dtype="float64"),
        "ragged": tensor(-1),
        "encoded": {"tensor": {**tensor(3)["tensor"], "encoding": "zlib"}},
    }
    values = {
        **small_values(2),
        "steps/observation/contact": np.array([True, False]),
        "steps/observation/counts": np.array([[-1, 300], [70000, 2]]),
        "steps/observation/label": np.array([2, 0]),
    }
    (episode,) = read_episodes(make_small(steps, [values]))
    assert {name: v.tolist() for name, v in episode.signals.items()} == {
        "contact": [1, 0],
        "counts": [[-1, 300], [70000, 2]],
        "label": [2, 0],
        "action": [[0, 1, 2], [3, 4, 5]],
    }
    assert all(values.dtype == np.float32 for values in episode.signals.values())


def test_texts_lie_anywhere(make_small):
    steps = {
        **SMALL_STEPS,
        "observation/natural_language_instruction": TEXT,
        "task": tensor(dtype="string"),
        "note": TEXT,
    }
    metadata = {"episode_metadata": group({"language": TEXT, "file_path": TEXT})}
    values = {
        **small_values(2),
        "steps/observation/natural_language_instruction": [b"first", b"second"],
        "steps/task": [b"lift"] * 2,
        "steps/note": [b"x"] * 2,
        "episode_metadata/language": ["Öffne".encode()],
        "episode_metadata/file_path": [b"run7.h5"],
    }
    root = make_small(steps, [values], metadata)
    (episode,) = read_episodes(root)
    assert RldsSource(root).schema.language == (
        "episode_metadata/language",
        "observation/natural_language_instruction",
        "task",
    )
    assert episode.texts == ("Öffne", "first", "lift")
    assert episode.origin.file_path == "run7.h5"
    (episode,) = entries_of(root, Schema(language=("note",)))
    assert episode.texts == ("x",)


FLAGGED_STEPS = {
    "observation/image_0": PICTURE,
    "observation/image_1": PICTURE,
    "action": tensor(1),
}
HAS = {"episode_metadata": group({f"has_image_{k}": tensor(dtype="bool") for k in (0, 1)})}


def flagged(has: tuple[int, int], second: list[bytes]) -> dict:
    return {
        "steps/observation/image_0": jpegs(2),
        "steps/observation/image_1": second,
        "steps/action": np.zeros(2),
        **{f"episode_metadata/has_image_{k}": np.array([flag]) for k, flag in enumerate(has)},
    }


def test_flags_say_which_cameras_an_episode_has(make_small):
    """Flags that deny all cameras are not believed: real shards were written so."""
    black = [encode_jpeg(np.zeros((8, 8, 3), np.uint8))] * 2
    values = [
        flagged((1, 1), jpegs(2)),
        flagged((1, 0), jpegs(2)),
        flagged((0, 1), [b"no picture"] * 2),
        flagged((0, 0), black),
    ]
    root = make_small(FLAGGED_STEPS, values, HAS)
    assert RldsSource(root).schema.present == {
        "image_0": "episode_metadata/has_image_0",
        "image_1": "episode_metadata/has_image_1",
    }
    *found, broken, last = entries_of(root)
    assert [tuple(e.pictures) for e in found] == [("image_0", "image_1"), ("image_0",)]
    assert broken.endswith(
        "image_1 at step 0: neither JPEG nor PNG: 10 bytes beginning with b'no pictu'"
    )
    assert tuple(last.pictures) == ("image_0",)
    present = {"image_1": "episode_metadata/has_image_0"}
    second = entries_of(root, Schema(present=present))[1]
    assert tuple(second.pictures) == ("image_0", "image_1")


def test_an_episode_without_any_camera_is_named(make_small):
    black = [encode_jpeg(np.zeros((8, 8, 3), np.uint8))] * 2
    values = {**flagged((0, 0), black), "steps/observation/image_0": black}
    (problem,) = entries_of(make_small(FLAGGED_STEPS, [values], HAS))
    assert "at byte 12: the episode has none of the cameras image_0, image_1" in problem


@pytest.mark.parametrize(
    "schema, message",
    [
        (
            Schema(cameras={"front": "observation/imag"}),
            "cameras .*did you mean 'observation/image'",
        ),
        (Schema(default_cameras=("imge",)), "default_cameras .*did you mean 'image'"),
        (Schema(present={"image": "episode_metadata/has_x"}), "present .*is unknown"),
        (Schema(state=("actoin",)), "state .*did you mean 'action'"),
        (Schema(signals=("embeding",)), "signals .*'embeding' is unknown"),
        (Schema(language=("language",)), "language .*is unknown"),
    ],
)
def test_a_wrong_key_of_a_schema_gets_the_nearest(make_small, schema, message):
    root = make_small(SMALL_STEPS, [small_values()])
    with pytest.raises(UserError, match=f"{root}: {message}"):
        RldsSource(root, schema)


def test_a_part_can_be_sent_to_another_process(reference):
    (part, _) = RldsSource(reference).parts()
    data = pickle.dumps(part)
    assert len(data) < 10_000
    assert [e.key for e in pickle.loads(data).episodes()] == ["train-00000/0", "train-00000/1"]


# --------------------------------------------------------------------------- damage


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
        ("steps/observation/wrist_image_left", [b""] * 6, "wrist_image_left at step 0: neither"),
        ("steps/observation/wrist_image_left", None, "wrist_image_left is missing"),
        ("episode_metadata/file_path", None, "file_path is missing"),
        ("episode_metadata/file_path", [b"a/b"], "'a/b' has an unsafe component ''"),
        ("episode_metadata/file_path", [b"x/../../trajectory.h5"], "unsafe component '..'"),
        ("episode_metadata/file_path", [b"x/2023/..\\evil/t.h5"], "unsafe component '..'"),
        ("episode_metadata/file_path", [b"x/2023/a\x00b/t.h5"], "unsafe component"),
        ("episode_metadata/file_path", [b"x/2023/.hidden/t.h5"], "unsafe component"),
        ("episode_metadata/file_path", [b"x/2023//t.h5"], "unsafe component ''"),
        ("episode_metadata/file_path", [b"x/2023/\xff/t.h5"], "utf-8"),
        ("episode_metadata/file_path", [b"x/2023/" + b"n" * 300 + b"/t.h5"], "over 200 bytes"),
    ],
)
def test_a_bad_field_is_one_sentence_with_shard_and_byte(
    make_dataset, make_features, key, value, message
):
    features = make_features(6)
    if value is None:
        del features[key]
    else:
        features[key] = value
    root = make_dataset([[make_features(6), features]])
    (shard,) = root.glob("*tfrecord*")
    _, bad = read_records(shard)
    good, problem = entries_of(root)
    assert good.length == 6
    assert problem.startswith(f"{shard} at byte {bad.offset}: ") and message in problem


def test_absent_instructions_are_empty(make_dataset, make_features):
    features = make_features(3)
    del features["steps/language_instruction_2"]
    (episode,) = read_episodes(make_dataset([[features]]))
    assert episode.texts[1] == "" != episode.texts[0]


def test_damaged_records_give_sentences_and_never_raise(make_small):
    """The CRCs are right, so all that stands between the damage and us is the parser."""
    metadata = {"episode_metadata": group({"file_path": TEXT, "has_image": tensor(dtype="bool")})}
    values = {
        **small_values(3),
        "episode_metadata/file_path": [b"x"],
        "episode_metadata/has_image": np.array([1]),
    }
    steps = {**SMALL_STEPS, "language": TEXT, "observation/n": tensor(2, dtype="int64")}
    values |= {"steps/language": [b"lift"] * 3, "steps/observation/n": np.arange(6) - 3}
    root = make_small(steps, [values], metadata)
    (shard,) = root.glob("*tfrecord*")
    (record,) = read_records(shard)
    draw = random.Random(0)

    def damaged() -> bytes:
        data = bytearray(record.payload)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])

    write_records(shard, [damaged() for _ in range(2000)])
    entries = entries_of(root)
    assert len(entries) == 2000
    assert 500 < sum(isinstance(entry, str) for entry in entries) < 2000


def test_a_damaged_payload_costs_one_record(shards):
    shard = min(shards.glob("*tfrecord*"))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(bytes(data))
    problem, *episodes = entries_of(shards)
    assert problem == f"{shard} at byte 12: bad CRC: the record's bytes are damaged"
    assert len(episodes) == 3 and not any(isinstance(e, str) for e in episodes)


def test_lost_episodes_of_a_truncated_shard_are_counted(shards):
    shard, _ = sorted(shards.glob("*tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    first, second, *rest = entries_of(shards)
    assert first.length == 41 and second.endswith("truncated: the file ends inside this record")
    assert len(rest) == 2
    shard.write_bytes(b"")
    assert entries_of(shards)[:2] == [
        f"{shard} at byte 0: episode 1 of 2 is lost: the shard ends before it",
        f"{shard} at byte 0: episode 2 of 2 is lost: the shard ends before it",
    ]


def test_missing_shards_of_a_partial_download_are_listed(shards):
    min(shards.glob("*tfrecord*")).unlink()
    source = RldsSource(shards)
    assert source.missing() == ["0"]
    (part,) = source.parts()
    assert (part.number, part.first, part.num_records) == (1, 2, 2)
    assert len(entries_of(shards)) == 2


def test_scanning_gives_the_origins_that_reading_gives(reference):
    scanned = [origin for part in RldsSource(reference).parts() for origin in part.origins()]
    assert scanned == [episode.origin for episode in read_episodes(reference)]
    scanned = [o for part in RldsSource(OXE / "dict_action").parts() for o in part.origins()]
    assert scanned == [episode.origin for episode in read_episodes(OXE / "dict_action")]


def test_scanning_damaged_shards(make_dataset, make_features, file_path):
    features = [make_features(2, file_path(second)) for second in range(3)]
    features[1]["episode_metadata/file_path"] = [b"\xff"]
    root = make_dataset([features])
    (part,) = RldsSource(root).parts()
    first, second, third = part.origins()
    assert (first.file_path, second, third.file_path) == (file_path(0), None, file_path(2))
    data = part.path.read_bytes()
    for size in (0, 5, 11, len(data) - 1, len(data) // 2):
        part.path.write_bytes(data[:size])
        whole = [record for record in read_records(part.path) if record.payload is not None]
        assert len(part.origins()) == len(whole) or size == len(data) - 1


# --------------------------------------------------------------------------- folders


def test_a_folder_without_a_data_set_is_refused_with_the_fix(tmp_path, shards):
    with pytest.raises(UserError, match="no such folder"):
        RldsSource(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no features\.json.*version folder"):
        RldsSource(tmp_path / "empty")
    other = shards / "other-train.tfrecord-00000-of-00003"
    other.write_bytes(b"")
    with pytest.raises(UserError, match="several data sets"):
        RldsSource(shards)
    other.unlink()
    (shards / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"dataset_info\.json"):
        RldsSource(shards)
    (shards / "dataset_info.json").unlink()
    (shards / "features.json").write_text('{"featuresDict": {"features": {}}}')
    with pytest.raises(UserError, match=r"features\.json: does not describe RLDS episodes"):
        RldsSource(shards)


def test_a_folder_without_shards_is_refused(shards):
    for shard in shards.glob("*tfrecord*"):
        shard.unlink()
    with pytest.raises(UserError, match="no shards .*is the download complete"):
        RldsSource(shards)


def test_two_versions_have_to_be_told_apart(shards):
    root = shards.parent / "both"
    for version in ("1.0.0", "1.0.1"):
        shutil.copytree(shards, root / version)
    with pytest.raises(UserError, match=r"choose one of .*1\.0\.0.*1\.0\.1"):
        RldsSource(root)


@pytest.mark.parametrize(
    "info, message",
    [
        ({"splits": [{}]}, "not a TFDS dataset_info.json"),
        ({"splits": [{"name": "train", "shardLengths": ["x"]}]}, "not a TFDS dataset_info.json"),
        ({"splits": [{"name": "train", "filepathTemplate": "{SHARD}"}]}, "none of TFDS's"),
        ({"splits": [], "fileFormat": "array_record"}, "array_record files; only tfrecord"),
    ],
)
def test_a_damaged_dataset_info_is_named(make_small, info, message):
    root = make_small(SMALL_STEPS, [small_values()], info=info)
    with pytest.raises(UserError, match=f"{root / 'dataset_info.json'}: .*{message}"):
        RldsSource(root)


def test_what_dataset_info_says_of_other_shards_is_not_believed(make_small):
    info = {"splits": [{"name": "train", "shardLengths": ["9", "9", "9"]}]}
    root = make_small(SMALL_STEPS, [small_values()], info=info)
    (part,) = RldsSource(root).parts()
    assert part.num_records is None and len(entries_of(root)) == 1


def test_steps_without_pictures_are_refused(make_small):
    root = make_small({"action": tensor(1)}, [{"steps/action": np.zeros(2)}])
    with pytest.raises(UserError, match=r"features\.json: the steps have no pictures"):
        RldsSource(root)


def test_a_shard_that_is_no_regular_file_is_refused(make_small):
    root = make_small(SMALL_STEPS, [small_values()])
    os.mkfifo(root / "small-val.tfrecord-00000-of-00001")
    with pytest.raises(UserError, match="small-val.*is no regular file"):
        RldsSource(root)


def test_only_folders_with_features_are_recognised(shards, tmp_path):
    assert RldsSource.recognises(shards)
    assert not RldsSource.recognises(tmp_path / "nowhere")
    assert not RldsSource.recognises(shards / "features.json")
    shutil.copytree(shards, tmp_path / "name" / "1.0.1")
    assert RldsSource.recognises(tmp_path / "name")


def test_a_shard_of_holes_is_not_walked_through(shards):
    """Zeros are a record of no bytes, but for the checksum of its length."""
    shard = sorted(shards.glob("*.tfrecord*"))[0]
    shard.write_bytes(b"")
    os.truncate(shard, 2**40)
    first, second = RldsSource(shards).parts()
    assert first.origins() == [] and len(second.origins()) == 2
