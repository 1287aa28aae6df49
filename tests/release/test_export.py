"""Exports: they are complete or absent, and load as the same encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import mcr
from mcr.errors import UserError
from mcr.models.layouts import Weights
from mcr.models.preprocessing import Preprocessing
from mcr.models.untrained import write_untrained
from mcr.release.export import _with_run, export_encoder
from mcr.runs import atomic
from tests.killed_write import leave_half

REPOSITORY = Path(__file__).parents[2]
IMAGES = torch.rand(2, 3, 90, 120, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source(checkpoint, save):
    return save(checkpoint)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder(source, network, tmp_path):
    out = tmp_path / "deep" / "mcr_v1.0"
    export = export_encoder(source, out)
    assert (export.num_tensors, export.embed_dim, export.backbone) == (120, 512, "resnet18")
    assert names(out) == ["README.md", "config.json", "model.safetensors", "recipe.yaml"]
    assert names(out.parent) == ["mcr_v1.0"]
    assert list(load_file(out / "model.safetensors")) and len(export.sha256) == 64
    assert torch.equal(mcr.load_model(out)(IMAGES), mcr.load_model(source)(IMAGES))
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == "resnet18" and config["num_features"] == 512
    assert config["pretrained_cfg"]["crop_pct"] == 0.875


def test_an_export_can_be_exported_again_and_keeps_its_history(source, tmp_path):
    first = export_encoder(source, tmp_path / "first")
    second = export_encoder(first.path, tmp_path / "second")
    assert second.sha256 == first.sha256
    histories = [json.loads((e.path / "config.json").read_text())["mcr"] for e in (first, second)]
    assert histories[0] == histories[1] and histories[0]["training"]["step"] == 1200


def test_upstreams_layout(source, network, make_network, tmp_path):
    out = tmp_path / "encoder.pth"
    export_encoder(source, out)
    tensors = torch.load(out, weights_only=True)
    assert list(tensors) == list(network.state_dict())
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    make_network("resnet18").load_state_dict(tensors, strict=True)  # as upstream's load_mcr does
    assert torch.equal(mcr.load_model(out)(IMAGES), mcr.load_model(source)(IMAGES))


def test_upstreams_layout_is_refused_where_it_would_mislead(checkpoint, save, tmp_path):
    checkpoint["encoder_config"] |= {"image_size": 112, "resize": 128}
    with pytest.raises(UserError, match="export to a folder instead"):
        export_encoder(save(checkpoint), tmp_path / "encoder.pth")
    export_encoder(tmp_path / "weights.pth", tmp_path / "out")
    assert mcr.load_model(tmp_path / "out").pretrained_cfg["input_size"] == (3, 112, 112)


def test_a_last_layer_has_no_place_in_upstreams_layout(tmp_path):
    """VIP's features are those of `fc`, which a .pth leaves out."""
    path = write_untrained(tmp_path / "vip.pt", "resnet50_fc1024", image_size=224)
    with pytest.raises(UserError, match=r"leaves out the last layer `fc`.* export to a folder"):
        export_encoder(path, tmp_path / "vip.pth")
    assert names(tmp_path) == ["vip.pt"]


def test_weights_may_lie_in_the_topmost_folder():
    weights = Weights(
        Path("/weights.pt"), "mcr training checkpoint", {}, "resnet18", Preprocessing(), {"step": 1}
    )
    assert _with_run(weights) is weights


def test_nothing_is_overwritten_without_force(source, tmp_path):
    for out in (tmp_path / "out", tmp_path / "out.pth"):
        export_encoder(source, out)
        with pytest.raises(UserError, match="exists already; choose another name or add --force"):
            export_encoder(source, out)
        export_encoder(source, out, force=True)
    assert names(tmp_path) == ["out", "out.pth", "weights.pth"]


def test_force_deletes_only_exports(source, tmp_path):
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex, which is no part of an export"):
        export_encoder(source, precious.parent, force=True)
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "folder.pth" / "file").touch()
    with pytest.raises(UserError, match="is a folder"):
        export_encoder(source, tmp_path / "folder.pth", force=True)
    with pytest.raises(UserError, match="is a file"):
        export_encoder(source, precious, force=True)
    assert precious.read_text() == "years of work"


def test_an_empty_folder_may_be_filled(source, tmp_path):
    (tmp_path / "out").mkdir()
    export_encoder(source, tmp_path / "out")
    assert names(tmp_path) == ["out", "weights.pth"]


def test_other_formats_are_refused(source, tmp_path):
    with pytest.raises(UserError, match=r"give a folder .*, or a \.pth, \.onnx or \.pt2 file"):
        export_encoder(source, tmp_path / "encoder.bin")


def test_facts_from_the_folder_of_the_run_are_added(checkpoint, tmp_path):
    """The last held-out metrics up to the checkpoint, the hardware, the whole config."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, run / "checkpoints" / "step_00001200.pt")
    entries = [
        {"step": step, "split": split, "contrast/accuracy": accuracy}
        for step, split, accuracy in [(600, "val", 0.3), (1200, "val", 0.875), (1200, "train", 1.0)]
    ]
    entries += [{"step": 1800, "split": "val", "contrast/accuracy": 0.9}]  # after the checkpoint
    log = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    (run / "metrics.jsonl").write_text(log + '{"step": 24')  # a killed writer's last line
    (run / "versions.json").write_text(json.dumps({"torch": "2.6.0", "device": "an abacus"}))
    out = export_encoder(run / "checkpoints" / "step_00001200.pt", tmp_path / "out").path
    assert names(out) == ["README.md", "config.json", "model.safetensors", "recipe.yaml"]
    card = (out / "README.md").read_text()
    for fact in ("| contrast/accuracy | 0.875 |", "| an abacus |"):
        assert fact in card
    assert '--config-path "$PWD/out" --config-name recipe' in card
    recipe = OmegaConf.load(out / "recipe.yaml")
    assert recipe.pop("defaults") == ["config", "_self_"]
    assert recipe == checkpoint["config"] | {"data": {}}  # without data.root
    again = export_encoder(out, tmp_path / "again").path
    for name in ("config.json", "recipe.yaml"):
        assert (again / name).read_text() == (out / name).read_text()
    assert "| contrast/accuracy | 0.875 |" in (again / "README.md").read_text()


def test_an_export_tells_nothing_of_people_and_folders(checkpoint, tmp_path):
    home = "/home/lovelace/private-arm"
    run = tmp_path / "lovelace" / "private-arm"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint["config"] |= {
        "run_dir": f"{home}/runs/a",
        "data": {
            "root": f"{home}/droid",
            "selection": {"keep_ranges": f"{home}/keep.json", "labs": ["AUTOLab"]},
            "mix": {"mine": {"root": f"{home}/mine", "schema": f"{home}/arm.yaml"}},
        },
        "model": {"init": "hf:org/name"},
        "objectives": {"distillation": {"teacher": "C:\\lovelace\\private-arm\\big.pt"}},
    }
    torch.save(checkpoint, run / "checkpoints" / "step_00001200.pt")
    launch = {"command": f"mcr train data.root={home}/droid", "folder": home, "data": [home]}
    (run / "launch.json").write_text(json.dumps(launch))
    out = export_encoder(run / "checkpoints" / "step_00001200.pt", tmp_path / "out").path
    for file in out.iterdir():
        assert b"private-arm" not in file.read_bytes() and b"lovelace" not in file.read_bytes(), (
            file
        )
    config = json.loads((out / "config.json").read_text())["mcr"]["training"]["config"]
    assert config["objectives"]["distillation"]["teacher"] == "big.pt"
    assert config["model"]["init"] == "hf:org/name" and config["seed"] == 0
    assert config["data"]["selection"] == {"keep_ranges": "keep.json", "labs": ["AUTOLab"]}
    assert config["data"]["mix"] == {"mine": {"schema": "arm.yaml"}}


def test_a_failing_export_leaves_the_old_one(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_encoder(source, out)
    before = {name: (out / name).read_bytes() for name in names(out)}

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "sync", no_space)
    with pytest.raises(OSError, match="No space left"):
        export_encoder(source, out, force=True)
    assert {name: (out / name).read_bytes() for name in names(out)} == before
    assert names(tmp_path) == ["out", "weights.pth"]


def test_a_killed_export_does_not_hinder_the_next(source, tmp_path):
    leave_half(tmp_path / "out")
    export_encoder(source, tmp_path / "out")
    assert names(tmp_path) == ["out", "weights.pth"]


def test_a_diverged_encoder_is_not_exported(checkpoint, save, tmp_path):
    checkpoint["encoder"]["conv1.weight"] *= 1e30
    checkpoint["encoder"]["bn1.weight"] *= 1e30
    with pytest.raises(UserError, match="training has diverged"):
        export_encoder(save(checkpoint), tmp_path / "out")
    assert names(tmp_path) == ["weights.pth"]


def test_the_script(source, tmp_path):
    def run():
        command = [sys.executable, "scripts/export.py", str(source), str(tmp_path / "out")]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, env=environment
        )

    first = run()
    assert first.returncode == 0, first.stderr
    assert "resnet18, 120 tensors" in first.stdout and "embed_dim: 512" in first.stdout
    again = run()
    assert again.returncode == 2
    assert again.stderr.startswith("error: ") and again.stderr.count("\n") == 1
