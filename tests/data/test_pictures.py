import contextlib
import hashlib
import io
import random

import numpy as np
import pytest
from PIL import Image

from mcr.data import pictures
from tests.episodes import read_episodes


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def saved(pixels: np.ndarray, format: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("height,width", [(1, 1), (1, 7), (9, 1), (180, 320), (33, 47)])
def test_png_is_lossless_and_readable_by_others(height, width):
    pixels = noise(height, width)
    data = pictures.encode_png(pixels)
    np.testing.assert_array_equal(pictures.decode(data), pixels)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)
    assert pictures.size_of(data) == (height, width)


def test_decoding_jpeg_is_tensorflows_bit_for_bit(reference, expected, expected_numbers):
    episodes = read_episodes(reference)
    compared = 0
    for episode, facts in zip(episodes, expected, strict=True):
        for camera, hashes in facts["pixels_sha256"].items():
            for step, sha256 in hashes.items():
                pixels = pictures.decode(episode.encoded_frame(camera, int(step)))
                assert hashlib.sha256(pixels.tobytes()).hexdigest() == sha256, (camera, step)
                compared += 1
    assert compared == 57
    for camera in episodes[0].pictures:
        pixels = pictures.decode(episodes[0].encoded_frame(camera, 0))
        np.testing.assert_array_equal(pixels, expected_numbers[f"0/pixels/{camera}/0"])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pngs_of_other_encoders_are_decoded_without_alpha(mode):
    pixels = noise(20, 30)
    decoded = pictures.decode(saved(pixels, "PNG", mode))
    assert decoded.shape == (20, 30, 3) and decoded.dtype == np.uint8
    reference = np.asarray(Image.fromarray(pixels).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(decoded, reference)


def test_16_bit_grey_is_scaled_not_clipped():
    grey = np.array([[0, 255, 256], [1000, 40000, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    expected = np.stack([grey // 256] * 3, axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(pictures.decode(buffer.getvalue()), expected)
    out = np.empty((2, 3, 3), np.uint8)
    pictures.decode(buffer.getvalue(), out)
    np.testing.assert_array_equal(out, expected)


PNGS = {
    "ours": pictures.encode_png(noise(20, 30)),
    **{mode: saved(noise(20, 30), "PNG", mode) for mode in ("RGB", "RGBA", "L")},
}
PICTURES = PNGS | {"JPEG": saved(noise(20, 30), "JPEG")}


@pytest.mark.parametrize("name", PICTURES)
def test_every_truncation_is_noticed(name):
    data = PICTURES[name]
    for size in range(len(data) - 4):  # the CRC of the empty last chunk says nothing
        with pytest.raises(ValueError):
            pictures.decode(data[:size])


@pytest.mark.parametrize("name", PICTURES)
def test_a_damaged_picture_raises_only_value_error(name):
    data = PICTURES[name]
    draw = random.Random(0)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):  # headers more often than the rest
            damaged[draw.randrange(draw.choice([60, len(data)]))] = draw.randrange(256)
        for read in (pictures.decode, pictures.size_of):
            with contextlib.suppress(ValueError):
                read(bytes(damaged))


@pytest.mark.parametrize("name", PNGS)
def test_a_changed_byte_of_a_png_never_changes_its_pixels(name):
    data = PNGS[name]
    pixels = pictures.decode(data)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        try:
            decoded = pictures.decode(bytes(damaged))
        except ValueError:
            continue
        np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"GIF89a" + b"0" * 100, b"\x89PNG\r\n\x1a\n"]
)
def test_bytes_that_are_no_picture_are_named(data):
    with pytest.raises(ValueError):
        pictures.decode(data)
    with pytest.raises(ValueError):
        pictures.size_of(data)


def test_a_damaged_size_allocates_nothing():
    data = bytearray(pictures.encode_png(noise(20, 30)))
    data[16:24] = (10**9).to_bytes(4, "big") * 2
    with pytest.raises(ValueError):
        pictures.decode(bytes(data))
