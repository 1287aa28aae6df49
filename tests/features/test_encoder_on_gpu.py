"""Encoders on a GPU give the features that they give on the CPU. Skipped without a GPU."""

import pytest
import torch
from torchvision.models import resnet18

import mcr
from mcr.data.pictures import encode_png
from mcr.features.extraction import FeatureConfig, extract_features

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A torchvision ResNet-18 of random weights, as a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return path


def test_a_loaded_encoder_works_on_the_gpu(weights, record_property):
    images = torch.randint(0, 256, (4, 3, 180, 320), dtype=torch.uint8)
    on_cpu = mcr.load_model(weights)(images)
    encoder = mcr.load_model(weights, device="cuda")
    on_gpu = encoder(images.cuda())
    assert on_gpu.is_cuda
    difference = ((on_gpu.cpu() - on_cpu).norm() / on_cpu.norm()).item()
    record_property("relative difference of features", f"{difference:.1e}")
    assert difference < 5e-3  # convolutions of float32 are TF32 on a GPU: 10 bits
    assert torch.equal(encoder(images), on_gpu)  # images of the CPU are brought to the encoder


def test_features_computed_on_the_gpu_are_those_of_the_cpu(weights, tmp_path, record_property):
    generator = torch.Generator().manual_seed(0)
    for episode, length in (("a", 5), ("b", 3)):
        folder = tmp_path / "data" / episode
        folder.mkdir(parents=True)
        for step in range(length):
            pixels = torch.randint(0, 256, (60, 80, 3), generator=generator, dtype=torch.uint8)
            (folder / f"{step}.png").write_bytes(encode_png(pixels.numpy()))
    found = []
    for device in ("cpu", "cuda"):
        config = FeatureConfig(engine="torch", workers=1, device=device)
        cache = extract_features(weights, tmp_path / "data", tmp_path / device, config)
        found.append(torch.from_numpy(cache.array[:].copy()).float())
    difference = ((found[1] - found[0]).norm() / found[0].norm()).item()
    record_property("relative difference of features", f"{difference:.1e}")
    assert difference < 5e-3
