"""Names that are not paths: the catalogue, MCR_WEIGHTS_PATH, torchvision."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
import torchvision

import mcr
from mcr.errors import UserError
from mcr.models import catalogue
from mcr.models.backbones import BACKBONES
from mcr.models.preprocessing import Preprocessing
from mcr.models.trainable import read_start

IMAGES = torch.rand(1, 3, 90, 120, generator=torch.Generator().manual_seed(0))
RESNET18 = torchvision.models.ResNet18_Weights.IMAGENET1K_V1


@pytest.fixture(autouse=True)
def nothing_downloaded_yet(tmp_path, monkeypatch):
    """Hide the caches of this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("mcr.models.catalogue.cached", lambda text: None)
    monkeypatch.delenv("MCR_WEIGHTS_PATH", raising=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The second folder of MCR_WEIGHTS_PATH; the first does not exist."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("MCR_WEIGHTS_PATH", f"{tmp_path / 'nowhere'}:{folder}")
    return folder


# --------------------------------------------------------------------------- the catalogue


def test_the_table():
    models = mcr.list_models()
    assert {"mcr_resnet50", "r3mdroid_resnet50", "r3m_resnet50", "vip_resnet50", "vc1_vitb"} <= {
        model.name for model in models
    }
    assert len({model.name for model in models}) == len(models)
    assert all(
        model.backbone in BACKBONES or model.backbone.startswith("timm:") for model in models
    )
    lines = str(models).splitlines()
    assert len(lines) == len(models) + 2 and lines[0].startswith("name")
    row = next(line for line in lines if line.startswith("mcr_resnet50"))
    for fact in ("resnet50", "2048", "94.3", "21560db9", "MIT", "DROID (CC BY 4.0)", "2410.22325"):
        assert fact in row


def test_a_name_finds_its_file(folder, snapshot, network):
    (folder / "r3m_18").mkdir()
    tensors = {"r3m": snapshot("lang_rew.pred.0.weight")}
    torch.save(tensors, folder / "r3m_18" / "model.pt")  # as R3M's own loader leaves it
    encoder = mcr.load_model("r3m_resnet18")
    pixels = encoder.preprocess(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(encoder(IMAGES), network(pixels))


def test_a_file_must_hold_the_network_that_its_name_says(folder, released):
    shutil.copy(released, folder / "r3m_resnet50.pt")
    with pytest.raises(UserError, match="do not fill a resnet50: 198 missing"):
        mcr.load_model("r3m_resnet50")


def test_another_hash_is_refused(folder, released):
    shutil.copy(released, folder / "mcr_resnet50.pth")
    with pytest.raises(UserError, match=r"it is not the published mcr_resnet50: .* 21560db9e795"):
        mcr.load_model("mcr_resnet50")
    assert (
        mcr.load_model(folder / "mcr_resnet50.pth").backbone == "resnet18"
    )  # a path is loaded whatever its hash
    model = catalogue.MODELS["mcr_resnet50"]
    right = dataclasses.replace(model, sha256=catalogue.sha256(released))
    assert catalogue.find(right) == folder / "mcr_resnet50.pth"


def test_the_error_for_a_missing_file_says_how_to_get_it(folder):
    with pytest.raises(
        UserError,
        match=r"r3m_resnet50 is neither in .*weights nor in the Hugging Face cache: get "
        r"https://drive.google.com/.* as r3m_resnet50.pt, into a folder .* MCR_WEIGHTS_PATH",
    ):
        mcr.load_model("r3m_resnet50")
    with pytest.raises(UserError, match="no such file, .* name of the encoder; did you mean 'r3m"):
        mcr.load_model("r3m_resnet51")


def test_an_existing_path_wins_over_a_name(tmp_path, released, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(released, "vc1_vitb")
    assert mcr.load_model("vc1_vitb").backbone == "resnet18"


def test_a_relative_path_is_looked_up_in_the_folders_too(folder, released):
    (folder / "lab").mkdir()
    shutil.copy(released, folder / "lab" / "encoder.pth")
    assert mcr.load_model("lab/encoder.pth").backbone == "resnet18"
    with pytest.raises(UserError, match=r"other\.pth: no such file, neither here nor in MCR_WEIG"):
        mcr.load_model("lab/other.pth")


def test_mvp_resizes_pictures_without_cropping(folder):
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_small_patch16_224", num_heads=12, num_classes=0).eval()
    torch.save({"model": network.state_dict()}, folder / "vits-mae-hoi.pth")
    encoder = mcr.load_model("mvp_vits-mae-hoi")
    assert encoder.preprocessing == Preprocessing(image_size=224, resize=224)
    with torch.no_grad():
        expected = network(encoder.preprocess(IMAGES))
        torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_vip_keeps_its_last_layer(folder):
    torch.manual_seed(0)
    network = torchvision.models.resnet50(num_classes=1024).eval()
    tensors = {f"module.convnet.{name}": t for name, t in network.state_dict().items()}
    torch.save({"vip": tensors}, folder / "vip_resnet50.pt")
    encoder = mcr.load_model("vip_resnet50")
    with torch.no_grad():
        pooled = encoder(IMAGES)
        torch.testing.assert_close(pooled, network(encoder.preprocess(IMAGES)))
    assert pooled.shape == (1, encoder.embed_dim) == (1, 1024)
    assert encoder.features(IMAGES, "spatial").shape == (1, 2048, 7, 7)
    assert encoder.stages[:2] == ("fc", "layer4")


# --------------------------------------------------------------------------- torchvision


@pytest.fixture
def published(tmp_path, monkeypatch):
    """torchvision's ResNet-18 with other tensors, under a link whose name carries its hash."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    path = tmp_path / "file.pth"
    torch.save(network.state_dict(), path)
    named = path.rename(tmp_path / f"resnet18-{catalogue.sha256(path)[:8]}.pth")
    monkeypatch.setattr(RESNET18.value, "url", named.as_uri())
    return named, network


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:resnet18.IMAGENET1K_V1"])
def test_torchvision_downloads_once(name, published, tmp_path):
    path, network = published
    network.fc = torch.nn.Identity()
    for _ in range(2):
        encoder = mcr.load_model(name)
        with torch.no_grad():
            torch.testing.assert_close(encoder(IMAGES), network(encoder.preprocess(IMAGES)))
        path.unlink(missing_ok=True)
    assert [p.name for p in (tmp_path / "torch/hub/checkpoints").iterdir()] == [path.name]


def test_torchvision_offline(folder, published):
    path, _ = published
    path.rename(folder / path.name)  # a copy made by hand
    assert mcr.load_model("torchvision:resnet18").embed_dim == 512
    (folder / path.name).write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UserError, match=r"resnet18-.*\.pth: its sha256 does not begin with"):
        mcr.load_model("torchvision:resnet18")
    (folder / path.name).unlink()
    with pytest.raises(UserError, match=r"not downloaded \(.*\); put the file into .*checkpoints"):
        mcr.load_model("torchvision:resnet18")


def test_training_may_begin_at_the_imagenet_weights_of_a_network(published):
    start = read_start("imagenet", "resnet18", image_size=64)
    assert (start.backbone, start.preprocessing.image_size) == ("resnet18", 64)
    assert torch.equal(start.tensors["conv1.weight"], published[1].conv1.weight)
    published[0].unlink()
    shutil.rmtree(torch.hub.get_dir())
    with pytest.raises(UserError, match=r"model.init=imagenet.*not downloaded.*--config-name scr"):
        read_start("imagenet", "resnet18", image_size=64)


def test_torchvision_classifiers_as_files(published, tmp_path, monkeypatch, caplog):
    """Preprocessing is decided by what the file holds, not by how it is called."""
    path, _ = published
    monkeypatch.setattr(RESNET18.value, "transforms", transforms_of_another_kind)
    assert mcr.load_model(path).preprocessing.resize == 232
    renamed = path.rename(tmp_path / "mine.pth")
    assert mcr.load_model(renamed).preprocessing.resize == 232
    assert not caplog.records
    torch.manual_seed(1)
    torch.save(torchvision.models.resnet18().state_dict(), path)  # others under the known name
    assert mcr.load_model(path).preprocessing == Preprocessing()
    (record,) = caplog.records
    assert "is none of the classifiers that torchvision publishes" in record.getMessage()
    assert "resized to 256 and cropped to 224" in record.getMessage()


def transforms_of_another_kind():
    return torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()


@pytest.mark.parametrize(
    "name, message",
    [
        ("torchvision:resnet19", "network='resnet19' is unknown; did you mean 'resnet18'"),
        ("torchvision:resnet18.V1", "weights='V1' is unknown; choose from: DEFAULT, IMAGENET1K_V1"),
    ],
)
def test_wrong_names_of_torchvision(name, message):
    with pytest.raises(UserError, match=message):
        mcr.load_model(name)


def test_a_backbone_that_contradicts_the_source_is_refused(published, checkpoint, save):
    for source in ("torchvision:resnet18", save(checkpoint)):
        with pytest.raises(UserError, match="is a resnet18, not the resnet50 that was asked for"):
            mcr.load_model(source, backbone="resnet50")
