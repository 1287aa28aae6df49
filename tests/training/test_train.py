"""Real runs on real shards: what they train, save, resume and refuse."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mcr.data.index import open_index
from mcr.errors import UserError
from mcr.training.checkpoint import list_checkpoints, load_checkpoint
from mcr.training.train import train
from tests.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]


def metrics(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def tensors(content, prefix=""):
    if isinstance(content, torch.Tensor):
        return {prefix: content}
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = {}
    for key, value in items:
        if isinstance(value, torch.Tensor | dict | list | tuple):
            found |= tensors(value, f"{prefix}/{key}")
    return found


def assert_same_checkpoint(a, b):
    a, b = tensors(load_checkpoint(a)), tensors(load_checkpoint(b))
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def test_a_run_writes_all_its_files(tiny):
    config = tiny()
    path = train(config)
    folder = Path(config.run_dir)
    assert {p.name for p in folder.iterdir()} == {
        "checkpoints", "config.yaml", "dataset.json", "launch.json", "metrics.jsonl",
        "summary.html", "summary.png", "tensorboard", "versions.json"
    }  # fmt: skip
    assert path == list_checkpoints(folder / "checkpoints")[-1]
    assert not list(folder.rglob("*.partial"))
    lines = metrics(folder)
    steps = [(line["step"], line["split"]) for line in lines]
    assert [step for step, split in steps if split == "train"] == [1, 2, 3, 4]
    assert [step for step, split in steps if split == "val"] == [0, 2, 4]
    for name in ("loss", "gradient_norm", "images_per_s", "data_wait", "embedding/effective_rank"):
        assert np.isfinite(lines[1][name]), name
    for name in ("dynamics_alignment", "action_prediction", "time_contrastive"):
        assert np.isfinite(lines[-1][f"{name}/loss"])
    checkpoint = load_checkpoint(path)
    assert checkpoint["step"] == 4
    assert checkpoint["dataset"]["fingerprint"] == open_index(config.data.root).fingerprint
    assert checkpoint["encoder_config"]["backbone"] == "resnet18"
    assert len(checkpoint["statistics"]["state"]["mean"]) == 17


def test_a_checkpoint_holds_the_statistics_of_the_chosen_spaces(tiny):
    options = {"data.action_space": "delta", "data.selection.idle": "drop"}
    config = tiny(steps=1, **options)
    checkpoint = load_checkpoint(train(config))
    kept = json.loads((open_index(config.data.root).path / "statistics.json").read_text())
    assert checkpoint["statistics"]["action"] == kept["delta, 6d"]
    assert len(checkpoint["statistics"]["action"]["q99"]) == 10
    assert len(checkpoint["statistics"]["state"]["std"]) == 17


def test_the_loss_is_the_weighted_sum(tiny):
    config = tiny(steps=1, loss_weights={
        "dynamics_alignment": 2.0, "action_prediction": 0.5, "time_contrastive": 0.0})  # fmt: skip
    train(config)
    line = next(m for m in metrics(config.run_dir) if m["split"] == "train")
    expected = 2 * line["dynamics_alignment/loss"] + 0.5 * line["action_prediction/loss"]
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert "time_contrastive/loss" not in line


def test_interrupted_and_resumed_equals_uninterrupted_bitwise(tiny, tmp_path):
    whole = train(tiny(steps=6, run_dir=str(tmp_path / "whole")))
    parts = tiny(steps=3, run_dir=str(tmp_path / "parts"))
    train(parts)
    parts.steps = 6
    resumed = train(parts)
    assert_same_checkpoint(whole, resumed)
    wanted = [m["loss"] for m in metrics(tmp_path / "whole")]
    # the run of 3 steps validated at its own end, too
    got = [m["loss"] for m in metrics(tmp_path / "parts") if (m["step"], m["split"]) != (3, "val")]
    assert got == wanted


def start(config, *, kill_at=None):
    """Start the run of `config` in a process of its own. It kills itself as it begins `kill_at`."""
    code = (
        "import sys; from omegaconf import OmegaConf; from mcr.training.config import Config;"
        "from mcr.training.train import train; from mcr.errors import plain_errors;"
        f"from tests.training.killed_run import kill_at; kill_at({kill_at});"
        "config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config),"
        " OmegaConf.load(sys.argv[1])))\nwith plain_errors(): train(config)"
    )
    from omegaconf import OmegaConf

    path = Path(config.run_dir).with_suffix(".yaml")
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def assert_a_kill_changes_nothing(whole, config, *, kill_at):
    """Train `whole`; kill the same run in another folder as it begins a step, and continue it.

    whole, config: configs that differ in their run_dir. Both end in the same bits, which are those
    of the last checkpoint, whose path is returned.
    """
    torch.set_num_threads(1)
    path = train(whole)
    killed = start(config, kill_at=kill_at)
    output, _ = killed.communicate(timeout=PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL, output
    done = list_checkpoints(Path(config.run_dir) / "checkpoints")
    step = load_checkpoint(done[-1])["step"]
    assert kill_at - config.save_every <= step <= kill_at
    assert_same_checkpoint(path, train(config))
    steps = [(m["step"], m["split"]) for m in metrics(config.run_dir)]
    assert len(steps) == len(set(steps)) and min(steps)[0] <= step < max(steps)[0]
    return path


def test_killed_in_the_middle_then_resumed_equals_uninterrupted_bitwise(tiny, tmp_path):
    options = {"steps": 12, "save_every": 4, "optimizer.decay_steps": 8}
    options |= {"data.sampling.color_jitter": 0.4, "data.sampling.action_chunk": 2}
    options |= {"balance_losses": True}
    whole, killed = (tiny(run_dir=str(tmp_path / n), **options) for n in ("whole", "killed"))
    assert_a_kill_changes_nothing(whole, killed, kill_at=6)


@pytest.mark.parametrize("everyone", [False, True])
def test_sigterm_saves_and_exits_cleanly(tiny, everyone):
    """everyone: loader processes get the signal too, as from a cluster's scheduler."""
    config = tiny(steps=10_000, save_every=10_000, **{"data.workers": 2})
    process = start(config)
    path = Path(config.run_dir) / "metrics.jsonl"
    wait_for(lambda: path.exists() and '"step": 2, "split": "train"' in path.read_text(), process)
    if everyone:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "stopped by SIGTERM" in output
    assert "not finished" in (Path(config.run_dir) / "summary.html").read_text()
    (path,) = list_checkpoints(Path(config.run_dir) / "checkpoints")
    assert load_checkpoint(path)["step"] >= 2


def test_old_checkpoints_are_deleted(tiny):
    config = tiny(steps=8, save_every=1, keep_checkpoints=2, val_clips=0)
    train(config)
    steps = [p.stem for p in list_checkpoints(Path(config.run_dir) / "checkpoints")]
    assert steps == ["step_00000007", "step_00000008"]


def test_a_non_finite_loss_stops_before_the_weights_change(tiny):
    config = tiny(steps=4, save_every=1, val_clips=0, normalise_signals=False)
    index = open_index(config.data.root)
    path = index.path / "signals.f32"
    signals = np.memmap(path, np.float32, mode="r+")
    signals[len(signals) // 3 :] = np.nan
    signals.flush()
    with pytest.raises(UserError, match=r"loss at step 0 .*clips with non-finite signals: \[\d"):
        train(config)
    assert not list_checkpoints(Path(config.run_dir) / "checkpoints")
    report = json.loads((Path(config.run_dir) / "non_finite.json").read_text())
    assert report["samples"] == [0, 1, 2, 3]


def test_training_learns(tiny):
    """Of the reference's pictures, which were made up, only the action can be learnt by heart."""
    alone = {"loss_weights.dynamics_alignment": 0.0, "loss_weights.time_contrastive": 0.0}
    config = tiny(steps=40, batch_size=8, val_clips=0, **{"optimizer.decay_steps": 20}, **alone)
    train(config)
    losses = [m["action_prediction/loss"] for m in metrics(config.run_dir)][-15:]
    # Normalised actions have variance 1, which is what the best guess without a picture costs. The
    # bound is half-way from it to what is learnt, several standard errors from both.
    assert np.mean(losses) < 0.75
    assert np.mean(losses) + 4 * np.std(losses, ddof=1) / len(losses) ** 0.5 < 1


def test_validation_does_not_touch_training(tiny, tmp_path):
    with_it = train(tiny(run_dir=str(tmp_path / "a")))
    without = train(tiny(run_dir=str(tmp_path / "b"), val_clips=0))
    assert_same_checkpoint(with_it, without)


@pytest.mark.parametrize("backbone", ["resnet34", "vit_ti_16"])
def test_other_backbones_train(tiny, backbone):
    train(tiny(steps=1, val_clips=0, **{"model.backbone": backbone}))


def test_a_run_with_all_options_of_the_engine(tiny):
    group = {"model.ghost_batch": 2, "objectives.time_contrastive.group": 2}
    engine = {"engine.accumulate": 2, "engine.recompute": True, "precision": "bf16"}
    path = train(tiny(steps=2, deterministic=True, **group, **engine))
    assert load_checkpoint(path)["step"] == 2


def test_frozen_batch_norm_keeps_the_statistics_of_the_weights_it_begins_at(tiny, small_checkpoint):
    options = {"model.frozen_bn": True, "model.init": str(small_checkpoint)}
    encoder = load_checkpoint(train(tiny(steps=2, val_clips=0, **options)))["encoder"]
    began = torch.load(small_checkpoint, weights_only=True)["encoder"]
    assert not torch.equal(encoder["conv1.weight"], began["conv1.weight"])
    for statistic in ("bn1.running_mean", "bn1.running_var"):
        assert torch.equal(encoder[statistic], began[statistic])


def test_statistics_of_random_weights_are_not_frozen(tiny):
    with pytest.raises(UserError, match=r"model.init is empty.*model.frozen_bn=false"):
        train(tiny(**{"model.frozen_bn": True}))


def test_changed_config_is_shown_and_refused(tiny):
    train(tiny(steps=1))
    with pytest.raises(UserError, match=r"optimizer.lr: 0.001 -> 0.1"):
        train(tiny(steps=2, **{"optimizer.lr": 0.1}))
    train(tiny(steps=2, allow_config_change=True, **{"optimizer.lr": 0.1}))
    with pytest.raises(UserError, match="holds a run"):
        train(tiny(resume="never"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.root": ""}, "data.root is not set"),
        ({"data.root": "/nowhere"}, "/nowhere"),
        ({"model.backbone": "resnet81"}, "resnet18"),
        ({"steps": 0}, "steps=0"),
        ({"precision": "fp8"}, "precision"),
        ({"optimizer.decay_steps": -1}, "decay_steps=-1"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"loss_weights.time_contrast": 1.0}, "time_contrastive"),
        ({"engine.accumulate": 3}, "batch_size=4 clips do not divide by 1 processes times .*=3"),
        ({"model.ghost_batch": 3}, "ghost_batch=3 must divide the 4 clips"),
        ({"model.ghost_batch": 2}, "set objectives.time_contrastive.group=2"),
    ],
)
def test_bad_values_are_refused_in_a_sentence(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        train(tiny(**overrides))


def test_a_damaged_checkpoint_is_named(tiny):
    config = tiny(steps=1)
    path = train(config)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step_00000001.pt: unreadable"):
        train(config)
