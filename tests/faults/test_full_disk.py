"""A full disk: one sentence with exit code 2, and the same call succeeds when there is room.

The disk is a real one of a few megabytes where mounting is permitted. Everywhere, a limit on the
size of files gives the errors of the system instead.
"""

import numpy as np
import pytest
import torch

from mcr.data.index import open_index
from mcr.data.pack import open_pack
from mcr.errors import plain_errors
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.models.untrained import write_untrained
from mcr.release.export import export_encoder
from mcr.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from tests.data.formats import record_episodes, write_hdf5
from tests.faults.places import filled, limited_files, mounted

LEFT = 1 << 14
CAMERA = ("exterior_image_1_left",)
CPU = FeatureConfig(cameras=CAMERA, workers=1, engine="torch", batch_size=8)


@pytest.fixture(params=["disk", "limit"])
def scarce(request, tmp_path):
    """(a folder, a context in which nothing but a few KiB can be written there)."""
    if request.param == "limit":
        yield tmp_path, lambda: limited_files(LEFT)
        return
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=96m", "tmpfs") as disk:
        yield disk, lambda: filled(disk, LEFT)


def refuse(act, full, capsys):
    """What a command says that calls `act` on the full disk."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end, plain_errors(), full():
        act()
    assert end.value.code == 2
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said
    known = ("No space left on device", "File too large", "MB of the disk are free")
    assert any(words in said for words in known)
    return errors[0]


@pytest.fixture
def weights(tmp_path):
    return write_untrained(tmp_path / "weights.pt", "timm:test_resnet", seed=0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_features(scarce, weights, reference, tmp_path, capsys):
    folder, full = scarce
    open_index(reference, tmp_path / "index")

    def act():
        return extract_features(weights, reference, folder / "cache", CPU, tmp_path / "index")

    before = names(folder)
    assert str(folder / "cache") in refuse(act, full, capsys)
    assert names(folder) == before
    assert np.isfinite(act().array).all()


def test_export(scarce, weights, capsys):
    folder, full = scarce
    before = names(folder)
    assert str(folder / "out") in refuse(
        lambda: export_encoder(weights, folder / "out"), full, capsys
    )
    assert names(folder) == before
    export_encoder(weights, folder / "out")


def test_checkpoint(scarce, capsys):
    folder, full = scarce
    content = {"encoder": {"weight": torch.randn(1 << 20)}}
    save_checkpoint(folder / "c", 1, content, keep=2)
    said = refuse(lambda: save_checkpoint(folder / "c", 2, content, keep=1), full, capsys)
    assert "step_00000002.pt" in said
    (kept,) = list_checkpoints(folder / "c")
    assert load_checkpoint(kept)["step"] == 1 and names(folder / "c") == [kept.name]
    save_checkpoint(folder / "c", 2, content, keep=1)


def test_pack(scarce, monkeypatch, capsys):
    folder, full = scarce
    monkeypatch.setattr("mcr.data.pack._FRAMES_PER_UNIT", 1)
    index = open_index(write_hdf5(folder / "data", record_episodes()))
    assert str(folder) in refuse(lambda: open_pack(index, workers=1), full, capsys)
    assert open_pack(index, workers=1).info["frames"] > 0
