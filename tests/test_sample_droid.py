"""The sample dataset that lies in git, and the parts of its generator that need no simulator."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from mcr.data.episode import Episode, unique_names
from mcr.data.sources.rlds import RldsSource
from mcr.data.tfrecord import Record, read_records
from mcr.errors import UserError
from tests.episodes import read_episodes

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "resources" / "sample_droid" / "1.0.0"
COMMANDS = ("cartesian_position", "gripper_position")


@pytest.fixture(scope="module")
def dataset() -> RldsSource:
    return RldsSource(SAMPLE)


@pytest.fixture(scope="module")
def records(dataset) -> list[Record]:
    return [record for part in dataset.parts() for record in read_records(part.path)]


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return read_episodes(SAMPLE)


@pytest.fixture
def generator(monkeypatch):
    """Makes `import sample_droid` find the generator, as scripts/make_sample_droid.py does."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def flat_keys(feature: dict, prefix: str = "") -> set[str]:
    """The keys of an Example that holds `feature` of a features.json."""
    if "sequence" in feature:
        return flat_keys(feature["sequence"]["feature"], prefix)
    if "featuresDict" in feature:
        members = feature["featuresDict"]["features"].items()
        return set().union(*(flat_keys(value, f"{prefix}/{name}") for name, value in members))
    return {prefix.removeprefix("/")}


# ---------------------------------------------------------------------------- the files in git


def test_schema_is_droids(reference):
    schema = json.loads((SAMPLE / "features.json").read_text())
    assert schema == json.loads((reference / "features.json").read_text())


def test_every_record_has_exactly_the_schemas_features(records):
    keys = flat_keys(json.loads((SAMPLE / "features.json").read_text()))
    assert len(keys) == 23
    for record in records:
        assert set(record.example()) == keys


def test_dataset_info_counts_what_is_there(dataset, records):
    info = json.loads((SAMPLE / "dataset_info.json").read_text())
    (split,) = info["splits"]
    shards = [part.path for part in dataset.parts()]
    lengths = [sum(record.path == shard for record in records) for shard in shards]
    assert [int(n) for n in split["shardLengths"]] == lengths
    assert int(split["numBytes"]) == sum(len(record.payload) for record in records)
    assert all(path.name.startswith(f"{info['name']}-train.") for path in shards)
    assert SAMPLE.parent.name == info["name"]


def test_size(dataset, episodes):
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= 15e6
    assert len(episodes) >= 16
    assert len({episode.origin.session for episode in episodes}) >= 6


def test_pictures_are_droids_jpegs(dataset, episodes):
    assert len(dataset.cameras) == 3
    for episode in episodes:
        for camera in dataset.cameras:
            for step in (0, episode.length - 1):
                data = episode.encoded_frame(camera, step)
                height, width, _, subsampling = simplejpeg.decode_jpeg_header(data)
                assert (height, width, subsampling) == (180, 320, "420")
                picture = simplejpeg.decode_jpeg(data)
                assert picture.std() > 15  # no black or blank picture
    first = [simplejpeg.decode_jpeg(episodes[0].encoded_frame(v, 0)) for v in dataset.cameras]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(first[i].astype(float) - first[j]).mean() > 10


def test_action_is_the_commanded_pose_and_gripper(episodes):
    for episode in episodes:
        parts = [episode.signals[f"action_dict/{name}"] for name in COMMANDS]
        assert np.array_equal(episode.signals["action"], np.concatenate(parts, axis=1))


def test_commands_are_small_steps_from_what_is_observed(episodes):
    """DROID's meaning of velocities: the step over the largest one that is allowed."""
    for episode in episodes:
        signals = episode.signals
        for kind, limit, count in (("cartesian", 0.075, 3), ("joint", 0.2, 7)):
            step = signals[f"action_dict/{kind}_position"] - signals[f"{kind}_position"]
            velocity = signals[f"action_dict/{kind}_velocity"]
            assert np.abs(velocity).max() <= 1 + 1e-6
            np.testing.assert_allclose(
                velocity[:, :count], step[:, :count] / limit, atol=1e-4, rtol=0
            )
        assert (signals["action_dict/gripper_position"] >= 0).all()
        assert (signals["action_dict/gripper_position"] <= 1).all()


def test_the_robot_follows_its_commands(episodes):
    """After a step the gripper is nearer to the commanded position than it was before."""
    gained = []
    for episode in episodes:
        observed, goal = episode.signals["cartesian_position"][:, :3], episode.signals["action"]
        before = np.linalg.norm(goal[:-1, :3] - observed[:-1], axis=1)
        after = np.linalg.norm(goal[:-1, :3] - observed[1:], axis=1)
        gained.append(after[before > 0.03] < before[before > 0.03])
    assert np.concatenate(gained).mean() > 0.95


def test_flags_and_reward(episodes):
    for episode in episodes:
        flags = episode.signals
        first, last = np.arange(episode.length) == 0, np.arange(episode.length)[::-1] == 0
        assert np.array_equal(flags["is_first"], first)
        assert np.array_equal(flags["is_last"], last)
        assert np.array_equal(flags["is_terminal"], last)
        assert np.array_equal(flags["reward"], last * (episode.origin.outcome == "success"))
        assert (flags["discount"] == 1).all()


def test_oddities_of_real_recordings_are_there(episodes):
    outcomes = Counter(episode.origin.outcome for episode in episodes)
    assert outcomes["failure"] >= 2
    assert outcomes["success"] + outcomes["failure"] == len(episodes)
    assert sum(episode.length < 40 for episode in episodes) == 2
    texts = [episode.texts for episode in episodes]
    assert sum(not any(text) for text in texts) >= 2
    assert sum(all(len(text.split()) == 1 for text in three) for three in texts) >= 1
    assert sum(not "".join(three).isascii() for three in texts) >= 1
    assert all(len(set(three)) == 3 for three in texts if any(three))


def test_two_labs_started_a_recording_in_the_same_second(episodes):
    names = [episode.origin.name for episode in episodes]
    (shared,) = (name for name, count in Counter(names).items() if count > 1)
    twins = [episode for episode in episodes if episode.origin.name == shared]
    assert len({episode.origin.lab for episode in twins}) == 2
    assert len(set(unique_names([episode.origin for episode in episodes]))) == len(episodes)


# ---------------------------------------------------------------------------- the generator


def test_generated_schema_is_droids(generator, reference):
    from sample_droid import schema

    assert schema.features() == json.loads((reference / "features.json").read_text())


def test_plan_has_the_stated_shares_and_no_path_twice(generator):
    from sample_droid.plan import SHARES, plan_episodes

    plans = plan_episodes(2000, ["lift", "stack"], seed=3)
    oddities = Counter(plan.oddity for plan in plans)
    assert {name: oddities[name] for name in SHARES} == {
        name: round(2000 * share) for name, share in SHARES.items()
    }
    assert sorted(plan.number for plan in plans) == list(range(2000))
    assert len({(plan.lab, plan.folder) for plan in plans}) == 2000
    assert Counter(plan.task for plan in plans) == {"lift": 1000, "stack": 1000}
    assert plans == plan_episodes(2000, ["lift", "stack"], seed=3)
    assert plans != plan_episodes(2000, ["lift", "stack"], seed=4)


def test_every_same_second_recording_has_a_twin_in_another_lab(generator):
    from sample_droid.plan import plan_episodes

    plans = plan_episodes(400, ["place"], seed=0)
    labs: dict[str, set[str]] = {}
    for plan in plans:
        labs.setdefault(plan.folder, set()).add(plan.lab)
    odd = [plan for plan in plans if plan.oddity == "same_second"]
    assert len(odd) == 16
    assert all(len(labs[plan.folder]) == 2 for plan in odd)


def test_the_sample_is_what_the_default_plan_says(generator, episodes):
    """Tasks, outcomes, times and language of the files in git are those of today's generator."""
    from sample_droid.plan import plan_episodes

    plans = plan_episodes(24, ["lift", "stack", "place"], seed=0)
    assert [(plan.lab, plan.folder) for plan in plans] == [
        (e.origin.lab, "/".join(e.origin.file_path.split("/")[-3:-1])) for e in episodes
    ]
    for plan, episode in zip(plans, episodes, strict=True):
        assert (episode.origin.outcome == "failure") == (plan.oddity == "failure")
        assert (episode.length < 40) == (plan.oddity == "short")


def test_labs_share_the_sessions(generator):
    from sample_droid.plan import plan_episodes

    labs = {plan.session: plan.lab for plan in plan_episodes(400, ["lift"], 0, num_labs=1000)}
    assert len(labs) == len(set(labs.values())) == 100
    assert (labs[0], labs[25], labs[26], labs[99]) == ("SIMA", "SIMZ", "SIMBA", "SIMDV")
    assert {plan.lab for plan in plan_episodes(400, ["lift"], 0, num_labs=2)} == {"SIMA", "SIMB"}


def test_folder_names_are_droids(generator):
    from sample_droid.plan import EpisodePlan

    plan = EpisodePlan(0, 0, "lift", 0, "SIMA", start_s=1_688_722_943, oddity="")
    assert plan.folder == "2023-07-07/Fri_Jul__7_09:42:23_2023"


def test_instructions(generator):
    from sample_droid.language import instructions

    names = [("red", "cube"), ("white", "box"), ("blue", "can")]
    rng = np.random.default_rng(0)
    english = instructions("place", names, "", rng)
    assert len(set(english)) == 3
    assert all("red cube" in text and "white box" in text for text in english)
    french = instructions("place", names, "non_ascii", rng)
    assert all("le cube rouge" in text and "la boîte blanche" in text for text in french)


def test_without_the_simulator_it_says_what_to_install(generator, tmp_path, monkeypatch):
    from sample_droid import dataset
    from sample_droid.look import Style
    from sample_droid.plan import plan_episodes

    monkeypatch.setattr(dataset, "_MODULES", ("json", "no_such_simulator"))
    with pytest.raises(UserError, match="needs no_such_simulator; pip install -r scripts/req"):
        dataset.write_dataset(tmp_path / "out", plan_episodes(2, ["lift"], 0), 1, 1, Style())
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_not_overwritten(generator):
    from sample_droid import dataset
    from sample_droid.look import Style

    with pytest.raises(UserError, match="exists; remove it or choose another folder"):
        dataset.write_dataset(SAMPLE.parent, [], 1, 1, Style())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--episodes", "2"], "--shards 4 exceeds --episodes 2"),
        (["--episodes", "0"], "--episodes: 0 must be a whole number of at least 1"),
        (["--quality", "0"], "--quality: 0 must be a whole number of at least 1 and at most 100"),
        (["--seed", "-1"], "--seed: -1 must be a whole number of at least 0"),
        (["--tasks", "juggle"], "--tasks: 'juggle' is unknown; choose from: lift, place, stack"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tmp_path, options, complaint):
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, "scripts/make_sample_droid.py", str(out), *options],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()
