"""The command that people use: recipes, overrides, mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcr.errors import UserError
from mcr.runs.options import check_overrides, config_difference, flatten
from mcr.training.config import FREE_TO_CHANGE, RENAMED, Config, free_to_change
from mcr.training.engine import OptimizerConfig
from tests.recipes import recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "cfgs").glob("*.yaml") if path.stem != "bc")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_says_what_it_is(name):
    recipe(name)
    header = (ROOT / "cfgs" / f"{name}.yaml").read_text().split("defaults:")[0]
    assert all(f"#   {word}" in header for word in ("command", "cost", "expected"))


def test_mcr_differs_from_the_typed_defaults_in_what_its_file_names():
    defaults = flatten(Config())
    changed = {key for key, value in flatten(recipe("mcr")).items() if value != defaults[key]}
    assert changed == {
        "model.init",
        "model.frozen_bn",
        "optimizer.lr",
        "optimizer.backbone_lr_scale",
        "optimizer.decay_steps",
        "loss_weights.action_prediction",
        "loss_weights.time_contrastive",
        "loss_weights.state_contrast",
        "data.action_space",
        "data.sampling.crop_scale",
        "data.sampling.color_jitter",
    }


def test_paper_takes_back_what_mcr_changed():
    def method(config):
        parts = ("model.", "optimizer.", "loss_weights.", "data.sampling.", "data.action_space")
        return {key: value for key, value in flatten(config).items() if key.startswith(parts)}

    assert method(recipe("paper")) == method(Config())


def test_scratch_is_mcr_without_weights_to_start_from():
    scratch, mcr = flatten(recipe("scratch")), flatten(recipe("mcr"))
    changed = {key: value for key, value in scratch.items() if value != mcr[key]}
    assert changed == {
        "run_dir": "runs/scratch",
        "model.init": "",
        "model.frozen_bn": False,
        "optimizer.backbone_lr_scale": 1.0,
    }


def test_paper_is_what_trained_the_released_weights():
    paper = recipe("paper")
    assert paper.model.backbone == "resnet50" and paper.model.image_size == 224
    assert (paper.steps, paper.batch_size, paper.optimizer.lr) == (500_000, 32, 1e-4)
    assert paper.loss_weights == {
        "dynamics_alignment": 1.0,
        "action_prediction": 1.0,
        "time_contrastive": 1.0,
        "state_contrast": 0.0,
        "distillation": 0.0,
    }
    assert not paper.normalise_signals and paper.precision == "fp32"
    assert paper.objectives.dynamics_alignment.form == "epsilon"
    assert paper.objectives.dynamics_alignment.negatives == "pair"
    assert paper.objectives.time_contrastive.form == "epsilon"
    assert paper.objectives.time_contrastive.negatives == "permutation"
    assert paper.objectives.time_contrastive.num_negatives == 3
    assert paper.data.sampling.window == 3 and paper.data.sampling.crop_per == "frame"
    assert tuple(paper.data.sampling.crop_scale) == (0.5, 1.0)
    assert (paper.data.selection.min_frames, paper.data.selection.language) == (40, "all")


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("data.rot=x", "data.root"),
        ("optimiser.lr=1", "optimizer.lr"),
        ("batchsize=3", "batch_size"),
        ("objectives.time_contrastive.negative=3", "negatives"),
    ],
)
def test_unknown_keys_get_the_nearest_one(argument, hint):
    with pytest.raises(UserError, match=f"did you mean .*{hint}"):
        check_overrides([argument], Config)


def test_known_keys_pass():
    check_overrides(["--config-name", "demo", "data.root=x", "loss_weights.action_prediction=0",
                     "+data.index=y", "hydra.verbose=true", "--help"], Config)  # fmt: skip


def test_config_difference_ignores_what_may_change():
    old = {"steps": 1, "data": {"root": "a", "workers": 1, "cameras": ["x"]}}
    new = {"steps": 2, "data": {"root": "b", "workers": 9, "cameras": ["y"]}}
    assert config_difference(old, new, FREE_TO_CHANGE) == ["data.cameras: ['x'] -> ['y']"]


def test_a_config_with_an_old_key_is_compared_by_the_new_one():
    old = {"data": {"views": ["x"], "workers": 1}}

    def changed(cameras: list[str]) -> list[str]:
        new = {"data": {"cameras": cameras, "workers": 1}}
        return config_difference(old, new, FREE_TO_CHANGE, RENAMED)

    assert changed(["x"]) == []
    assert changed(["y"]) == ["data.cameras: ['x'] -> ['y']"]


def test_the_error_for_an_old_key_names_the_new_one():
    with pytest.raises(UserError, match="data.views is called data.cameras now"):
        check_overrides(["data.views=[exterior_image_1_left]"], Config, RENAMED)


def test_the_number_of_steps_may_not_change_under_learning_rate_decay():
    assert "steps" in free_to_change(Config())
    assert "steps" not in free_to_change(Config(optimizer=OptimizerConfig(decay_steps=5)))


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mcr.training.train", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_command_line_trains_from_any_folder(shards, tmp_path):
    result = run(
        "--config-name", "demo", f"data.root={shards}", "steps=2", "batch_size=2",
        "model.image_size=32", "val_clips=4", "data.workers=1", "data.selection.min_frames=30",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/demo/checkpoints/step_00000002.pt").is_file()
    shown = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert shown == {"runs", "shards", "shards.index"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-name", "scratch", "data.root=/nowhere"], "error: /nowhere"),
        (["batchsize=3"], "did you mean 'batch_size'"),
        (["steps=many"], "steps"),
        (["--config-name", "papers"], "paper"),
    ],
)
def test_mistakes_end_in_a_sentence(tmp_path, arguments, message):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_help_lists_what_can_be_overridden(tmp_path):
    text = run("--help", cwd=tmp_path).stdout
    for key in ("batch_size: 32", "backbone: resnet50", "crop_per: frame", "--config-name"):
        assert key in text
