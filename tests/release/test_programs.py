"""Programs: the files compute what the encoder computes, and take uint8 alone."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest
import torch

from mcr.errors import UserError
from mcr.models import onnx_file
from mcr.models.golden_pictures import golden_pictures
from mcr.models.layouts import read_weights
from mcr.models.loading import build_encoder
from mcr.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from mcr.release import programs
from mcr.release.export import export_encoder
from mcr.release.programs import cropped_golden_pictures

IMAGES = torch.randint(
    0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def exported(small_checkpoint, tmp_path_factory):
    """A ResNet-18 at 64 pixels as both kinds of program."""
    folder = tmp_path_factory.mktemp("programs")
    for suffix in (".onnx", ".pt2"):
        export_encoder(small_checkpoint, folder / f"encoder{suffix}")
    return folder


@pytest.fixture(scope="module")
def expected(network):
    """The features by torchvision alone."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        return network((IMAGES / 255 - mean) / std)


def test_onnx(exported, expected):
    session = onnxruntime.InferenceSession(exported / "encoder.onnx")
    for images, features in ((IMAGES, expected), (IMAGES[:1], expected[:1])):  # any batch
        (computed,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(computed), features, rtol=1e-4, atol=1e-4)


def test_onnx_takes_nothing_but_uint8(exported):
    session = onnxruntime.InferenceSession(exported / "encoder.onnx")
    with pytest.raises(Exception, match="expected: \\(tensor\\(uint8\\)\\)"):
        session.run(None, {"images": IMAGES.float().numpy()})


def test_torch_export(exported, expected):
    program = torch.export.load(exported / "encoder.pt2").module()
    for images, features in ((IMAGES, expected), (IMAGES[:1], expected[:1])):
        torch.testing.assert_close(program(images), features, rtol=1e-4, atol=1e-4)


def test_both_say_how_pictures_are_prepared(exported):
    onnx_file = onnx.load(exported / "encoder.onnx")
    files = {"mcr": ""}
    torch.export.load(exported / "encoder.pt2", extra_files=files)
    for text in (next(p.value for p in onnx_file.metadata_props if p.key == "mcr"), files["mcr"]):
        config = json.loads(text)["mcr"]
        assert config["encoder_config"]["resize"] == 73
        assert config["training"]["step"] == 1200


def test_a_program_that_computes_something_else_is_not_accepted(
    small_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(programs.ImagesToFeatures, "forward", lambda self, images: images[:, 0, 0])
    with pytest.raises(Exception, match="differs|size|shape"):
        export_encoder(small_checkpoint, tmp_path / "encoder.pt2")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_into_onnx_is_refused(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MAX_ONNX_BYTES", 1_000_000)
    with pytest.raises(UserError, match="do not fit into one ONNX file"):
        export_encoder(small_checkpoint, tmp_path / "encoder.onnx")


def test_cropped_pictures_are_what_the_encoder_sees(small_checkpoint):
    encoder = build_encoder(read_weights(small_checkpoint))
    images = cropped_golden_pictures(encoder.preprocessing)
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 64, 64)
    seen = encoder.preprocess(list(golden_pictures().values()))
    torch.testing.assert_close(encoder.preprocess(images), seen, rtol=0, atol=0.51 / 255 / 0.224)
