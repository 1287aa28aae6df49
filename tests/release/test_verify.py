"""Verify: each way in which an encoder may differ from its claims is found and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mcr
from mcr.errors import UserError
from mcr.models import catalogue
from mcr.models.backbones import build_backbone
from mcr.models.catalogue import sha256
from mcr.release import verify as verify_module
from mcr.release.export import export_encoder
from mcr.release.verify import SOUND, UNKNOWN, WRONG

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def export(small_checkpoint, tmp_path_factory):
    """Read only."""
    return export_encoder(small_checkpoint, tmp_path_factory.mktemp("verify") / "encoder").path


@pytest.fixture
def damaged(export, tmp_path):
    """A copy that a test may change: `damaged(change)` applies it to the tensors."""
    folder = shutil.copytree(export, tmp_path / "encoder")

    def change_tensors(change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        digest = sha256(folder / "model.safetensors")
        edit_config(folder, lambda config: config["mcr"].update(weights_sha256=digest))
        return folder

    return change_tensors


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def findings(source):
    return {finding.subject: finding for finding in mcr.verify(source).findings}


def test_a_sound_export(export):
    verification = mcr.verify(export)
    assert verification.ok
    assert {finding.verdict for finding in verification.findings} == {SOUND}
    text = str(verification)
    assert "120/120 tensors of a resnet18" in text and "sha256" in text
    assert text.endswith(f"{export} is what it claims to be, as far as can be told")


def test_fewer_checks_apply_to_a_bare_file(released):
    found = findings(released)
    assert found["golden features"].verdict == found["file"].verdict == UNKNOWN
    assert found["training"].verdict == SOUND and mcr.verify(released).ok


def test_a_corrupted_weight_is_caught_by_golden_features_alone(damaged):
    def change(tensors):
        tensors["layer4.1.conv2.weight"][17] *= -3

    folder = damaged(change)
    found = findings(folder)
    wrong = {name for name, finding in found.items() if finding.verdict == WRONG}
    assert wrong == {"golden features"}
    assert "from the export's" in found["golden features"].text


def test_a_flipped_bit_is_caught_by_the_hash(damaged):
    file = damaged(lambda tensors: None) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    found = findings(file.parent)
    assert found["loading"].verdict == WRONG
    assert "was changed or damaged: its sha256 is" in found["loading"].text


def test_a_random_initialisation_is_recognised_as_untrained(checkpoint, save, tmp_path):
    checkpoint["encoder"] = build_backbone("resnet18").state_dict()
    folder = export_encoder(save(checkpoint), tmp_path / "out").path
    verification = mcr.verify(folder)
    found = {finding.subject: finding for finding in verification.findings}
    assert not verification.ok
    assert "saw no data" in found["batch statistics"].text
    assert (
        "all" not in found["training"].text and "the encoder is untrained" in found["training"].text
    )
    assert (
        found["golden features"].verdict == SOUND
    )  # it computes what was exported, although that is random
    assert "is NOT what it should be: look at batch statistics, training" in str(verification)


def test_a_random_vision_transformer_is_recognised_as_untrained(tmp_path):
    torch.save(build_backbone("vit_ti_16").state_dict(), tmp_path / "vit.pth")
    found = findings(tmp_path / "vit.pth")
    assert found["batch statistics"].verdict == UNKNOWN
    assert found["training"].verdict == WRONG and "untrained" in found["training"].text


def test_an_untrained_part_is_recognised(damaged):
    fresh = build_backbone("resnet18").state_dict()

    def change(tensors):
        tensors |= {name: fresh[name] for name in tensors if name.startswith("layer4.1.")}

    found = findings(damaged(change))
    assert "layer4.1.bn1, layer4.1.bn2 of 20" in found["training"].text
    assert "a part of it is untrained" in found["training"].text


def test_impossible_variances(damaged):
    found = findings(damaged(lambda tensors: tensors["layer2.0.bn1.running_var"].fill_(0.0)))
    assert found["batch statistics"].text.startswith("layer2.0.bn1: variances are not above zero")


def test_negative_variances_do_not_load(damaged):
    found = findings(damaged(lambda tensors: tensors["layer2.0.bn1.running_var"].fill_(-1.0)))
    assert "the variances layer2.0.bn1.running_var are negative" in found["loading"].text


def test_a_collapsed_encoder(damaged):
    found = findings(damaged(lambda tensors: tensors["bn1.weight"].zero_()))
    assert found["features"].verdict == WRONG and "has collapsed" in found["features"].text


def test_changed_preprocessing(export, tmp_path):
    folder = shutil.copytree(export, tmp_path / "one")
    edit_config(folder, lambda config: config["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]))
    found = findings(folder)["loading"]
    assert "pretrained_cfg differs from mcr.encoder_config in mean" in found.text
    assert found.verdict == WRONG
    folder = shutil.copytree(export, tmp_path / "two")

    def change(config):
        for part in (config["pretrained_cfg"], config["mcr"]["encoder_config"]):
            part["mean"] = [0.5, 0.5, 0.5]

    edit_config(folder, change)
    assert findings(folder)["golden features"].verdict == WRONG


def test_a_file_that_does_not_load_is_a_finding(damaged, tmp_path):
    verification = mcr.verify(damaged(lambda tensors: tensors.pop("layer1.0.conv1.weight")))
    assert not verification.ok and "1 missing" in str(verification)
    with pytest.raises(UserError, match="no such file"):
        mcr.verify(tmp_path / "nothing")


def test_published_hashes(released, tmp_path, monkeypatch):
    """The catalogue has the hash of a ResNet-18 instead of the real one."""
    entry = catalogue.MODELS["mcr_resnet50"]
    monkeypatch.setattr(
        verify_module, "identify", lambda digest: entry if digest == sha256(released) else None
    )
    assert findings(released)["file"].text.startswith("the published mcr_resnet50")
    impostor = tmp_path / "mcr_resnet50.pth"
    torch.save(torch.load(released), impostor)
    assert "is not the published file" in findings(impostor)["file"].text


def test_the_script(export, damaged):
    environment = {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}

    def run(source):
        command = [sys.executable, "scripts/verify.py", str(source)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, env=environment
        )

    sound = run(export)
    assert sound.returncode == 0, sound.stderr
    assert "is what it claims to be" in sound.stdout
    wrong = run(damaged(lambda tensors: tensors["bn1.weight"].zero_()))
    assert wrong.returncode == 1 and "is NOT what it should be" in wrong.stdout
