import pytest
import torch
from torchvision.transforms import functional

from mcr.models.crops import crop_resize, crop_resize_batched, network_input

BOXES = torch.tensor(
    [[0, 0, 180, 320], [10, 20, 100, 150], [0, 40, 180, 240], [100, 200, 60, 80], [3, 5, 171, 301]]
).float()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, 3, 12, 20, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (180, 320), mode="bicubic")
    noise = torch.rand(smooth.shape, generator=generator) * 0.2
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


def reference(images, size):
    return torch.stack(
        [
            functional.resized_crop(image.float(), *box, [size, size], antialias=True)
            for image, box in zip(images, BOXES.int().tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("size", [96, 176, 224])
def test_equals_torchvisions_resized_crop(images, size):
    expected = reference(images, size)
    assert (
        crop_resize(images, BOXES, size).float() - expected
    ).abs().max() < 1.01  # uint8 arithmetic
    assert (crop_resize_batched(images, BOXES, size) - expected).abs().max() < 0.01


def test_network_input_is_normalised_and_clip_by_clip(images):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    got = network_input(images[None], BOXES[None], 96, mean, std)
    expected = functional.normalize(reference(images, 96) / 255, mean, std)
    assert got.shape == (5, 3, 96, 96)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (got - expected).abs().max() < 1.01 / 255 / min(std)


def test_colours_change_before_normalising(images):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    brighter = torch.tensor([[1.2, 0.9, 1.0], [-0.1, 0.0, 0.05]]).expand(1, 5, 2, 3)
    got = network_input(images[None], BOXES[None], 96, mean, std, brighter)
    gain, offset = brighter[0, 0, :, :, None, None]
    expected = functional.normalize(gain * reference(images, 96) / 255 + offset, mean, std)
    assert (got - expected).abs().max() < 1.2 * 1.01 / 255 / min(std)

    plain = network_input(images[None], BOXES[None], 96, mean, std)
    unchanged = torch.tensor([[1.0], [0.0]]).expand(1, 5, 2, 3)
    assert network_input(images[None], BOXES[None], 96, mean, std, unchanged).equal(plain)
