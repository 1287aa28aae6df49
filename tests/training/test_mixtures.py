"""Runs on several data sets at once: what they compute, log, save, resume and refuse."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mcr
from mcr.cli import run
from mcr.data.batch import UNNAMED
from mcr.data.index import open_index
from mcr.errors import UserError
from mcr.models.untrained import write_untrained
from mcr.objectives import frames_read
from mcr.release.export import export_encoder
from mcr.training.checkpoint import load_checkpoint
from mcr.training.config import counts_of_clips
from mcr.training.distributed import World
from mcr.training.engine import EngineConfig
from mcr.training.run_folder import load_config
from mcr.training.train import Run, train
from tests.training.one_step import (
    ALONE,
    CPU,
    NUM_CLIPS,
    distance,
    make_engine,
    mixed_batch,
    one_step,
    whole_batch,
)
from tests.training.test_train import (
    assert_a_kill_changes_nothing,
    metrics,
)

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
SOURCES = {
    "droid": DATA / "droid_tfds/1.0.0",
    "bridge": DATA / "reference/oxe/bridge_like/1.0.0",
    "lerobot": DATA / "reference/lerobot/lerobot_v3_image",
}
WITHIN_THE_CLIP = {"negatives": "pair", "num_negatives": 0}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """Copies of three data sets that other software wrote, indexed: DROID, Bridge, LeRobot."""
    folder = tmp_path_factory.mktemp("roots")
    copies = {
        name: shutil.copytree(root, folder / name / root.name, copy_function=shutil.copyfile)
        for name, root in SOURCES.items()
    }
    for root in copies.values():
        open_index(root, workers=1)
    return copies


@pytest.fixture
def mixed(make_tiny, roots, tmp_path):
    """mixed("droid", "bridge", weights={"droid": 3}, **overrides) -> Config"""

    def make(*names, weights=None, **overrides):
        mix = {n: {"root": str(roots[n]), "weight": (weights or {}).get(n, 1)} for n in names}
        # The episodes of the other data sets are shorter than DROID's.
        options = {"run_dir": str(tmp_path / "run"), "batch_size": 8, "data.mix": mix}
        return make_tiny(**options | {"data.selection.min_frames": 10} | overrides)

    return make


def state(path):
    return load_checkpoint(path)["encoder"] | load_checkpoint(path)["objectives"]


def test_a_run_on_three_data_sets_writes_logs_and_exports(mixed, tmp_path):
    config = mixed("droid", "bridge", "lerobot", weights={"droid": 2}, pictures_every=4)
    path = train(config)
    last = {line["split"]: line for line in metrics(config.run_dir)}
    for name in ("droid", "bridge", "lerobot"):
        for key in ("dynamics_alignment/accuracy", "action_prediction/r2", "embedding/spread"):
            assert np.isfinite(last["train"][f"{name}/{key}"])
        assert (tmp_path / f"run/pictures/step_00000004_{name}_clips.png").is_file()
    assert np.isfinite(last["val"]["droid/time_contrastive/loss"])
    checkpoint = load_checkpoint(path)
    assert set(checkpoint["statistics"]) == {"droid", "bridge", "lerobot"}
    assert set(checkpoint["dataset"]["mix"]) == {"droid", "bridge", "lerobot"}
    launch = json.loads((tmp_path / "run/launch.json").read_text())
    assert "droid: 50.0% of the clips" in launch["data"]
    page = (tmp_path / "run/summary.html").read_text()
    assert "bridge: dynamics alignment: accuracy" in page
    encoder = mcr.load_model(export_encoder(path, tmp_path / "export").path)
    assert encoder.backbone == "resnet18"


def test_the_loss_is_the_mean_over_clips_of_the_losses_of_the_data_sets(mixed):
    config = mixed("droid", "bridge", weights={"droid": 3}, steps=1, val_clips=0)
    assert counts_of_clips(config) == {"bridge": 2, "droid": 6}
    train(config)
    (line,) = metrics(config.run_dir)
    names = ("dynamics_alignment", "action_prediction", "time_contrastive")
    of = {
        d: sum(line[f"{d}/{n}/loss"] * config.loss_weights[n] for n in names)
        for d in ("bridge", "droid")
    }
    assert line["loss"] == pytest.approx((2 * of["bridge"] + 6 * of["droid"]) / 8, rel=1e-6)


def test_a_mixture_of_one_data_set_is_training_on_it_alone_bitwise(mixed, tmp_path, roots):
    options = {"data.workers": 1, "data.sampling.color_jitter": 0.3}
    alone = mixed(run_dir=str(tmp_path / "alone"), **options)
    alone = replace(alone, data=replace(alone.data, root=str(roots["droid"]), mix={}))
    one = mixed("droid", **options)
    expected, got = state(train(alone)), state(train(one))
    renamed = {key.removeprefix("droid/"): tensor for key, tensor in got.items()}
    assert renamed.keys() == expected.keys()
    assert not [key for key in expected if not torch.equal(expected[key], renamed[key])]
    for mine, theirs in zip(metrics(one.run_dir), metrics(alone.run_dir), strict=True):
        assert mine["loss"] == theirs["loss"]


def test_killed_in_the_middle_then_resumed_equals_uninterrupted_bitwise(mixed, tmp_path):
    options = {"steps": 6, "data.workers": 1}
    whole, killed = (
        mixed("droid", "lerobot", run_dir=str(tmp_path / name), **options)
        for name in ("whole", "killed")
    )
    assert_a_kill_changes_nothing(whole, killed, kill_at=5)


def test_another_data_set_is_refused_unless_asked_for_and_keeps_what_fits(mixed, capsys):
    first = train(mixed("droid", "bridge", steps=2))
    with pytest.raises(UserError, match="begun with the data sets bridge, droid; now .* bridge, d"):
        train(mixed("droid", "bridge", "lerobot", steps=3))
    with pytest.raises(UserError, match="now there are droid. Choose"):
        train(mixed("droid", steps=3))
    config = mixed("droid", "lerobot", steps=3, allow_config_change=True, val_clips=0)
    capsys.readouterr()
    continued = Run(config, World(), CPU)
    assert "begin anew: lerobot/action_prediction.actor.0.bias" in capsys.readouterr().out
    before = state(first)
    after = continued.model.encoder.state_dict() | continued.model.objectives.state_dict()
    stay = [key for key in after if not key.startswith("lerobot/")]
    assert any(key.startswith("droid/") for key in stay)
    assert not [key for key in stay if not torch.equal(after[key], before[key])]
    old, moments = load_checkpoint(first), continued.engine.optimizer.state_dict()["state"]
    (old_names,), (names,) = old["parameter_names"], continued.engine.parameter_names
    for number, name in enumerate(names):
        if name.startswith("objectives.lerobot/"):
            assert number not in moments
        else:
            of_old = old["optimizer"]["state"][old_names.index(name)]
            assert torch.equal(moments[number]["exp_avg"], of_old["exp_avg"])
    train(config)


def test_a_changed_option_of_one_data_set_is_shown_and_refused(mixed):
    train(mixed("droid", "bridge", steps=1))
    changed = mixed("droid", "bridge", steps=2, weights={"droid": 3})
    with pytest.raises(UserError, match=r"data.mix.droid.weight: 1 -> 3"):
        train(changed)


def test_a_data_set_that_was_exchanged_is_named(mixed, roots):
    train(mixed("droid", "bridge", steps=1))
    config = mixed("droid", "bridge", steps=2)
    config.data.mix["bridge"]["root"] = str(roots["lerobot"])
    with pytest.raises(UserError, match=r"bridge.cameras|on other data called bridge"):
        train(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.root": "/data"}, "exclude each other"),
        ({"data.mix.bridge.weight": 0.001}, "bridge gets none of the 8 clips"),
        ({"data.mix.bridge.root": "/nowhere"}, "data.mix.bridge: .*nowhere"),
        ({"data.mix.bridge.selection": {"min_frames": 10_000}}, "data.mix.bridge: .*no episode is"),
        ({"data.mix_multiple": 3}, "8 clips do not divide into multiples of 3"),
        ({"objectives.time_contrastive.group": 8}, "gets none of the 8 clips .* multiple of 8"),
        ({"data.mix.bridge.sampling": {"windw": 3}}, "did you mean 'sampling.window'"),
    ],
)
def test_bad_mixtures_are_refused_in_a_sentence(mixed, overrides, message):
    with pytest.raises(UserError, match=message):
        train(mixed("droid", "bridge", **overrides))


def test_report_and_comparison_take_a_run_on_several_data_sets(mixed, capsys):
    config = mixed("droid", "bridge", steps=1)
    train(config)
    assert run(["report", config.run_dir]) == 0
    assert "held-out accuracy of droid/dynamics_alignment" in capsys.readouterr().out
    for name in ("droid", "bridge"):
        assert (Path(config.run_dir) / f"contact_sheet_{name}.png").is_file()


# --------------------------------------------------------------------------- one step


def test_data_sets_share_the_encoder_and_nothing_else():
    """Without batch statistics and negatives, gradients are those of each data set alone."""
    options = WITHIN_THE_CLIP | {"frozen_bn": True}
    together = one_step(ALONE, mixed_batch(), **options)["gradients"]
    alone = one_step(ALONE, mixed_batch()["a"], **options)["gradients"]
    halved = {key: gradient / 2 for key, gradient in alone.items() if "objectives" in key}
    of_a = {
        key.replace("objectives.a/", "objectives."): gradient
        for key, gradient in together.items()
        if key.startswith("objectives.a/")
    }
    assert distance(of_a, halved) < 1e-5
    assert all(gradient.any() for key, gradient in together.items() if "b/" in key)


def test_one_batch_that_is_named_twice_has_the_gradient_of_the_whole_batch():
    """The two halves of a batch as two data sets: only the heads are apart."""
    whole, options = whole_batch(), WITHIN_THE_CLIP
    halves = {
        name: type(whole)(**{k: v[part] for k, v in vars(whole).items()})
        for name, part in (("a", slice(NUM_CLIPS // 2)), ("b", slice(NUM_CLIPS // 2, NUM_CLIPS)))
    }
    engine = make_engine(ALONE, dimensions=dict.fromkeys("ab", whole.dimensions), **options)
    objectives = engine.model.objectives
    for key in list(objectives):
        if key.startswith("b/"):
            objectives[key].load_state_dict(objectives[key.replace("b/", "a/")].state_dict())
    engine.step([halves])
    expected = one_step(ALONE, **options)["gradients"]
    named = dict(engine.model.named_parameters())
    encoder = {key: named[key].grad for key in expected if key.startswith("encoder")}
    assert distance(encoder, {key: expected[key] for key in encoder}) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"engine": EngineConfig(accumulate=2)},
        {"engine": EngineConfig(recompute=True)},
        {"engine": EngineConfig(accumulate=2, recompute=True), "ghost_batch": 2, "group": 2},
    ],
)
def test_parts_and_recomputing_change_nothing(options):
    common = WITHIN_THE_CLIP | {"frozen_bn": "ghost_batch" not in options}
    plain = {key: value for key, value in options.items() if key != "engine"}
    got = one_step(ALONE, mixed_batch(), **common | options)["gradients"]
    assert distance(got, one_step(ALONE, mixed_batch(), **common | plain)["gradients"]) < 1e-5


@pytest.mark.slow
def test_compiling_changes_gradients_by_rounding_only():
    eager = one_step(ALONE, mixed_batch(), precision="fp32")["gradients"]
    engine = EngineConfig(compile="default")
    compiled = one_step(ALONE, mixed_batch(), precision="fp32", engine=engine)["gradients"]
    assert distance(compiled, eager) < 1e-3


# --------------------------------------------------------------------------- fewer frames


def test_each_objective_names_the_frames_that_it_reads():
    """An objective's loss changes if a frame that it names changes, and only then."""
    for name, expected in {
        "dynamics_alignment": (1, 3),
        "time_contrastive": (1, 2, 3),
        "action_prediction": (0, 1, 2, 3, 4),
    }.items():
        assert frames_read({name: 1.0}) == expected
        model = make_engine(ALONE, precision="fp32").model
        embeddings = torch.randn(NUM_CLIPS, 5, 512, requires_grad=True)
        model.objectives[name](embeddings, whole_batch())[0].backward()
        pulled = embeddings.grad.abs().amax((0, 2)) > 0
        assert pulled.nonzero().flatten().tolist() == list(expected)
    assert frames_read({"dynamics_alignment": 0.0, "time_contrastive": 2.0}) == (1, 2, 3)


def test_unread_frames_are_skipped_without_changing_the_others(tiny, tmp_path):
    """With fixed batch statistics, steps on three frames are those on five."""
    weights = {"dynamics_alignment": 1.0, "action_prediction": 0.0, "time_contrastive": 1.0}
    options = {"loss_weights": weights, "pictures_every": 4}
    begin = write_untrained(tmp_path / "begin.pt", "resnet18", 32, seed=1)
    options |= {"model.frozen_bn": True, "model.init": str(begin)}
    every = tiny(run_dir=str(tmp_path / "every"), **options)
    some = tiny(run_dir=str(tmp_path / "some"), **options, **{"data.skip_unread_frames": True})
    expected, got = state(train(every)), state(train(some))
    assert distance(got, expected) < 1e-5
    losses = [[line["loss"] for line in metrics(config.run_dir)] for config in (every, some)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    batch = next(iter(Run(some, World(), CPU).data.loader(0, pin_memory=False)))[UNNAMED]
    assert batch.frames.shape[1] == 3 and batch.actions.shape[1] == 5


# --------------------------------------------------------------------------- the page


def test_the_recipe_of_the_page_trains(roots, tmp_path):
    """The recipe of docs/pretraining.md, on the reference data sets and with a small network."""
    page = (ROOT / "docs/pretraining.md").read_text()
    recipe = re.search(r"^```yaml\n(defaults:.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    command = re.search(r"^mcr train (--config-dir .*)$", page, re.MULTILINE)[1]
    for name, path in (("droid", "/data/droid/1.0.1"), ("bridge", "/data/bridge")):
        assert recipe.count(f"root: {path}\n") == 1
        recipe = recipe.replace(f"root: {path}\n", f"root: {roots[name]}\n")
    # The reference data set has two of Bridge's four cameras, so Bridge's schema does not fit it.
    recipe = recipe.replace("      schema: bridge\n", "")
    (tmp_path / "my_recipes").mkdir()
    (tmp_path / "my_recipes/two_robots.yaml").write_text(recipe)
    small = ["steps=1", "batch_size=8", "val_clips=0", "pictures_every=0", "device=cpu"]
    small += ["model.backbone=resnet18", "model.image_size=32", "data.workers=0"]
    small += ["data.selection.min_frames=10", "model.init=''", "model.frozen_bn=false"]
    result = subprocess.run(
        [sys.executable, "-m", "mcr.cli", "train", *shlex.split(command), *small],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    saved = load_config(tmp_path / "runs/two_robots").data
    assert saved.mix["bridge"]["weight"] == 2 and saved.mix["droid"]["weight"] == 3
    assert saved.mix["droid"]["selection"]["idle"] == "drop"
    assert all(entry["sampling"]["color_jitter"] == 0.4 for entry in saved.mix.values())
