"""The schemas of cfgs/data, and docs/schemas.md, which lists them."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mcr.data.schema import (
    Schema,
    find_schema,
    list_schemas,
    load_schema,
    schemas_folder,
    to_yaml,
)
from mcr.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = {name: load_schema(name) for name in list_schemas()}
BRIDGE_PATH = (
    "/nfs/kun2/users/homer/datasets/bridge_data_all/numpy_256/bridge_data_v1/berkeley/toysink2_bww"
    "/put_carrot_on_plate/val/out.npy"  # of a released shard
)
# Names of the cameras and signals, copied from the pages and loaders that the schemas name.
THINGS = {
    "libero_hdf5": (
        *("agentview_rgb", "eye_in_hand_rgb", "ee_ori", "ee_pos", "ee_states", "gripper_states"),
        *("joint_states", "actions", "dones", "robot_states"),
    ),
    "aloha": ("cam_high", "cam_left_wrist", "cam_right_wrist", "effort", "qpos", "qvel", "action"),
}
VIOLA_THINGS = (
    *("agentview_rgb", "eye_in_hand_rgb", "ee_states", "gripper_states", "joint_states"),
    *("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"),
)


def test_every_file_of_the_folder_is_listed():
    files = {path.name for path in schemas_folder().iterdir()}
    assert files == {f"{name}.yaml" for name in SCHEMAS}
    assert len(SCHEMAS) >= 24


def test_no_two_schemas_share_a_name_or_a_title():
    names = Counter(name for schema in SCHEMAS.values() for name in schema.names)
    titles = Counter(schema.title for schema in SCHEMAS.values())
    counts = [*names.items(), *titles.items()]
    assert [name for name, count in counts if count > 1] == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_file(name):
    schema, text = SCHEMAS[name], (schemas_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("title:")].splitlines()
    assert header and all(line.startswith("# ") for line in header), "the header says the sources"
    assert re.search(r"\bsources?\b", " ".join(header), re.IGNORECASE)
    assert schema.title and schema.names and schema.hz > 0
    cameras = set(schema.cameras) or set(schema.default_cameras) | set(schema.present)
    assert {*schema.default_cameras, *schema.present} <= cameras
    recording = schema.recording
    assert bool(recording.key) == bool(recording.pattern), "a pattern needs a key to search in"


@pytest.mark.parametrize("name", SCHEMAS)
def test_rotations_belong_to_the_state_the_action_or_its_parts(name):
    schema = SCHEMAS[name]
    for signal in schema.rotations:
        used = (*schema.state, *schema.action, "action_dict/cartesian_position")
        assert signal in used, f"{signal} is not used"


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_is_found_by_each_of_its_names(name):
    for dataset in SCHEMAS[name].names:
        assert find_schema(dataset, []) == SCHEMAS[name]


@pytest.mark.parametrize("name", THINGS)
def test_files_without_a_name_of_their_own_are_found_by_what_they_hold(name):
    schema, things = SCHEMAS[name], set(THINGS[name])
    assert find_schema("demo", things) == schema
    assert {*schema.state, *schema.action, *schema.default_cameras} <= things
    for thing in schema.match:
        assert find_schema("demo", things - {thing}) is None


def test_viola_is_not_taken_for_libero_which_has_most_of_its_signals():
    assert find_schema("viola", VIOLA_THINGS) == SCHEMAS["viola"]


def test_an_unknown_data_set_has_no_schema():
    assert find_schema("my_robot", ["front", "state", "action"]) is None


@pytest.mark.parametrize("name", SCHEMAS)
def test_yaml_round_trip(name, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(SCHEMAS[name]), encoding="utf-8")
    assert load_schema(path) == SCHEMAS[name]
    assert load_schema(yaml.safe_load(path.read_text(encoding="utf-8"))) == SCHEMAS[name]


def test_the_path_of_a_bridge_episode_tells_its_kitchen_whatever_the_split():
    pattern = SCHEMAS["bridge"].recording.pattern
    sessions = {
        re.search(pattern, path)["session"]
        for path in (BRIDGE_PATH, BRIDGE_PATH.replace("/val/", "/train/"))
    }
    assert sessions == {"toysink2_bww"}


def test_a_wrong_field_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown field 'camera'.*'cameras'"):
        Schema.of({"camera": {"front": "observation/front"}})
    with pytest.raises(UserError, match=r"unknown field 'patern'.*'pattern'"):
        Schema.of({"recording": {"patern": "x"}})


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"schema 'brige' is unknown.*'bridge'"):
        load_schema("brige")


def test_the_page_is_current():
    command = [sys.executable, "scripts/list_schemas.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    page = (ROOT / "docs/schemas.md").read_text(encoding="utf-8")
    assert page == result.stdout, "run: python scripts/list_schemas.py > docs/schemas.md"
    assert all(f"[`{name}`](../cfgs/data/{name}.yaml)" in page for name in SCHEMAS)
