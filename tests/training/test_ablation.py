"""The ablation recipe: its variants, and the sweep over them by the command that people use."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mcr.runs.options import flatten
from mcr.training.checkpoint import list_checkpoints, load_checkpoint
from mcr.training.run_folder import load_config
from tests.recipes import recipe
from tests.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]
VARIANTS = sorted(path.stem for path in (ROOT / "cfgs" / "ablation").glob("*.yaml"))


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_changes_something_and_has_its_own_folder(name):
    full = recipe("ablation", "ablation=full")
    variant = recipe("ablation", f"ablation={name}", "seed=3")
    assert variant.run_dir == f"runs/ablation/{name}/seed3"
    changed = {key for key, value in flatten(variant).items() if value != flatten(full)[key]}
    assert (changed > {"run_dir", "seed"}) == (name != "full")
    assert "steps" not in changed or name == "untrained"


def test_variants_of_the_simulation_recipe_have_folders_of_their_own():
    assert recipe("simulation").run_dir == "runs/simulation/full/seed0"
    variant = recipe("simulation", "ablation=no_time_contrastive", "seed=3")
    assert variant.run_dir == "runs/simulation/no_time_contrastive/seed3"
    assert variant.loss_weights["time_contrastive"] == 0
    assert recipe("simulation", "run_dir=mine").run_dir == "mine"


def test_the_paper_variant_has_all_of_the_papers_choices_of_method():
    def choices(config):
        method = ("objectives.", "normalise_signals", "loss_weights.")
        return {key: value for key, value in flatten(config).items() if key.startswith(method)}

    assert choices(recipe("ablation", "ablation=paper")) == choices(recipe("paper"))


def start_sweep(folder: Path, *options: str) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "mcr.training.train", "--config-name", "ablation",
        "ablation=window_1,no_time_contrastive", "seed=0", "batch_size=2", "val_clips=0",
        "model.image_size=32", "data.selection.min_frames=30", "pictures_every=0", *options,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def test_a_sweep_runs_each_variant_in_its_folder(shards, tmp_path):
    sweep = start_sweep(tmp_path, f"data.root={shards}", "steps=1")
    output, _ = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 0, output
    runs = tmp_path / "runs" / "ablation"
    folders = [runs / name / "seed0" for name in ("window_1", "no_time_contrastive")]
    assert {path.parent for path in tmp_path.rglob("config.yaml")} == set(folders)
    assert [load_config(folder).data.sampling.window for folder in folders] == [1, 3]
    newest = [list_checkpoints(folder / "checkpoints")[-1] for folder in folders]
    assert [load_checkpoint(path)["step"] for path in newest] == [1, 1]


@pytest.mark.slow
def test_sigterm_stops_the_sweep_and_not_only_a_run(shards, tmp_path):
    sweep = start_sweep(tmp_path, f"data.root={shards}", "steps=10000", "log_every=1")
    first = tmp_path / "runs" / "ablation" / "window_1" / "seed0"
    log = first / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text(), sweep)
    sweep.send_signal(signal.SIGTERM)
    output, _ = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 0 and "stopped by SIGTERM" in output
    assert [path.parent for path in tmp_path.rglob("config.yaml")] == [first]
