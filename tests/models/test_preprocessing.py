"""Preprocessing against torchvision's transforms, and every kind of wrong input."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mcr.errors import UserError
from mcr.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

PREPROCESS = Preprocessing()
REFERENCE = transforms.Compose(
    [
        transforms.Resize(256, antialias=True),
        transforms.CenterCrop(224),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)


@pytest.fixture
def pixels() -> np.ndarray:
    """uint8 [180, 320, 3]: smooth enough for resampling to be comparable."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((320, 180), Image.Resampling.BICUBIC))


@pytest.fixture
def chw(pixels: np.ndarray) -> torch.Tensor:
    """The same picture, float [3, 180, 320] in [0, 1]."""
    return torch.from_numpy(pixels).movedim(-1, 0) / 255


@pytest.mark.parametrize("height, width", [(180, 320), (256, 256), (480, 640), (225, 224)])
def test_equals_torchvision(height, width):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(PREPROCESS(images), REFERENCE(images))


def test_equals_the_pillow_pipeline_within_rounding(pixels):
    image = Image.fromarray(pixels)
    pipeline = transforms.Compose([*REFERENCE.transforms[:2], transforms.ToTensor()])
    levels = 255 * (PREPROCESS(image) * torch.tensor(IMAGENET_STD).view(3, 1, 1))
    levels = levels + 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    assert (levels - 255 * pipeline(image)).abs().max() < 1.5


def test_a_picture_of_the_final_size_is_only_normalised():
    images = torch.rand(3, 224, 224)
    torch.testing.assert_close(PREPROCESS(images), REFERENCE.transforms[2](images))


def test_other_sizes_keep_the_proportion_of_resize_and_crop():
    assert Preprocessing.for_size(224) == PREPROCESS
    assert Preprocessing.for_size(112).resize == 128
    assert Preprocessing.for_size(112)(torch.rand(3, 90, 160)).shape == (3, 112, 112)
    for size in range(32, 512, 16):  # timm computes `resize` from this ratio
        resize = Preprocessing.for_size(size).resize
        assert int(size / (size / resize)) == resize


EQUIVALENT = {
    "PIL": lambda p: Image.fromarray(p),
    "PIL with alpha": lambda p: Image.fromarray(p).convert("RGBA"),
    "numpy uint8 HWC": lambda p: p,
    "numpy float HWC": lambda p: p / 255,
    "numpy uint8 CHW": lambda p: np.moveaxis(p, -1, 0),
    "numpy with negative strides": lambda p: np.ascontiguousarray(p[::-1])[::-1],
    "torch uint8 CHW": lambda p: torch.from_numpy(p).movedim(-1, 0),
    "torch uint8 HWC": lambda p: torch.from_numpy(p),
    "torch float64": lambda p: torch.from_numpy(p).movedim(-1, 0).double() / 255,
    "as ToTensor gives it": lambda p: transforms.ToTensor()(Image.fromarray(p)),
    "not contiguous": lambda p: torch.from_numpy(p.repeat(2, axis=0))[::2],
}


@pytest.mark.parametrize("convert", EQUIVALENT.values(), ids=EQUIVALENT)
def test_every_type_gives_the_same(convert, pixels, chw):
    torch.testing.assert_close(PREPROCESS(convert(pixels)), PREPROCESS(chw), rtol=0, atol=1e-5)


def test_half_floats_lose_no_more_than_their_rounding(chw):
    torch.testing.assert_close(PREPROCESS(chw.bfloat16()), PREPROCESS(chw), rtol=0, atol=0.02)


def test_bicubic_is_clipped_as_in_pillow():
    preprocess = Preprocessing(interpolation="bicubic")
    picture = torch.zeros(3, 300, 300)
    picture[:, :, 100:200] = 1  # overshoots at the edges
    levels = preprocess(picture) * torch.tensor(IMAGENET_STD).view(3, 1, 1)
    levels = levels + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    assert levels.min() >= -1e-6 and levels.max() <= 1 + 1e-6
    image = Image.fromarray((255 * picture).byte().movedim(0, -1).numpy())
    image = transforms.Resize(256, transforms.InterpolationMode.BICUBIC)(image)
    expected = transforms.ToTensor()(transforms.CenterCrop(224)(image))
    assert (levels - expected).abs().max() < 1.5 / 255


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK"])
def test_pillow_modes_of_eight_bits_are_converted(mode, pixels):
    image = Image.fromarray(pixels).convert(mode)
    torch.testing.assert_close(PREPROCESS(image), PREPROCESS(image.convert("RGB")))


@pytest.mark.parametrize(
    "leading", [(), (1,), (2,), (2, 3, 2)]
)  # a picture, ..., [batch, time, camera]
def test_leading_dimensions_are_kept(leading, pixels):
    images = np.broadcast_to(pixels, (*leading, *pixels.shape))
    out = PREPROCESS(images)
    assert out.shape == (*leading, 3, 224, 224) and out.dtype == torch.float32
    torch.testing.assert_close(out.reshape(-1, 3, 224, 224)[-1], PREPROCESS(pixels))


def test_a_list_may_mix_sizes(pixels):
    out = PREPROCESS([Image.fromarray(pixels), pixels[:, :200], torch.rand(3, 300, 300)])
    assert out.shape == (3, 3, 224, 224)
    torch.testing.assert_close(out[1], PREPROCESS(pixels[:, :200]))


def test_gradients_reach_the_images():
    images = torch.rand(1, 3, 90, 90, requires_grad=True)
    PREPROCESS(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_the_input_is_not_changed(chw, pixels):
    before = chw.clone(), pixels.copy()
    PREPROCESS(chw), PREPROCESS(pixels)
    assert torch.equal(chw, before[0]) and np.array_equal(pixels, before[1])


NORMALISE = REFERENCE.transforms[2]
WRONG = {
    "ImageNet-normalised": (lambda x: NORMALISE(x), "looks ImageNet-normalised already"),
    "scaled to [-1, 1]": (lambda x: 2 * x - 1, r"looks scaled to \[-1, 1\] or normalised"),
    "0..255 floats": (lambda x: 255 * x, "looks like 0..255 floats; divide by 255"),
    "0..255 floats, normalised": (lambda x: NORMALISE(255 * x), r"pass uint8 in 0..255 or float"),
    "scaled by 127.5": (lambda x: 255 * x / 127.5 - 1, r"looks scaled to \[-1, 1\] or normalised"),
    "half a batch normalised": (lambda x: torch.stack([x, NORMALISE(x)]), "normalised already"),
    "one of a list normalised": (lambda x: [x, NORMALISE(x)], "normalised already"),
    "one of a batch times 255": (lambda x: torch.stack([x, 255 * x]), "looks like 0..255 floats"),
    "divided by 255 twice": (lambda x: x / 255, "looks divided by 255 twice"),
    "divided by 255 twice, half": (lambda x: (x / 255).half(), "looks divided by 255 twice"),
    "a resampling overshoot": (lambda x: 1.1 * x, r"pass images.clip\(0, 1\)"),
    "int64 pixels": (lambda x: (255 * x).long(), "images are int64: pass uint8"),
    "int32 pixels": (lambda x: (255 * x).int(), "images are int32: pass uint8"),
    "16-bit depth": (lambda x: (9000 * x).numpy().astype(np.uint16), "uint16; looks like depth"),
    "complex": (lambda x: np.zeros((3, 8, 8), complex), "of the type complex128 array"),
    "bool": (lambda x: x > 0.5, "images are bool"),
    "NaN": (lambda x: torch.where(x > 0.5, torch.nan, x), "NaN or infinity"),
    "infinity": (lambda x: torch.where(x > 0.5, torch.inf, x), "NaN or infinity"),
    "grey": (lambda x: x[0], "grey or depth picture has one channel"),
    "grey with a channel": (lambda x: x[:1], "grey or depth picture has one channel"),
    "four channels": (lambda x: torch.cat([x, x[:1]]), "four channels; drop alpha"),
    "two frames stacked as channels": (
        lambda x: torch.cat([x, x]),
        r"6 channels; frames stacked as channels\? .*\[..., 2, 3, H, W\]",
    ),
    "colours before time": (
        lambda x: x[None, :, None].expand(2, 3, 7, -1, -1),
        r"put time before the colours, \[..., T, 3, H, W\]",
    ),
    "colours in the middle": (lambda x: x.movedim(0, 1), r"expected \[..., 3, H, W\]"),
    "three pixels wide": (lambda x: x[..., :3], "both the last and the third last could be the"),
    "one picture empty": (lambda x: x[..., :0], "there is no picture in it"),
    "flattened": (
        lambda x: x.reshape(5, 64, 540),
        r"expected \[..., 3, H, W\] or \[..., H, W, 3\]",
    ),
    "empty batch": (lambda x: x[None][:0], "there is no picture in it"),
    "empty list": (lambda x: [], "no images in this list"),
    "a list of batches": (lambda x: [x, x[None]], "one picture per element"),
    "a file name": (lambda x: "picture.png", "of the type str"),
    "an array of objects": (lambda x: np.array([None]), "of the type object array"),
    "a dictionary": (lambda x: {"image": x}, "of the type dict"),
    "a depth picture": (lambda x: Image.new("I;16", (8, 8)), "mode 'I;16'"),
}


@pytest.mark.parametrize("convert, message", WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused_with_the_likely_mistake(convert, message, chw):
    picture = (chw - chw.min()) / (chw.max() - chw.min())  # values from 0 to 1
    with pytest.raises(UserError, match=message):
        PREPROCESS(convert(picture))


DARK = {
    "black, uint8": lambda x: torch.zeros_like(x, dtype=torch.uint8),
    "black, float": lambda x: torch.zeros_like(x),
    "floats cast to uint8": lambda x: x.byte(),
    "one level of noise": lambda x: (x > 0.5) / 255,
}


@pytest.mark.parametrize("convert", DARK.values(), ids=DARK)
def test_black_pictures_give_a_warning(convert, chw):
    picture = convert((chw - chw.min()) / (chw.max() - chw.min()))
    with pytest.warns(UserWarning, match="all images of this call are black: .*cast to uint8"):
        out = PREPROCESS(picture)
    levels = picture.float() / 255 if picture.dtype == torch.uint8 else picture
    torch.testing.assert_close(out, REFERENCE(levels))


def test_one_black_picture_among_others_gives_no_warning(chw, recwarn):
    PREPROCESS(torch.stack([chw, torch.zeros_like(chw)]))
    assert not recwarn.list


def test_config_round_trip():
    written = Preprocessing.for_size(160).encoder_config("resnet34")
    assert Preprocessing.from_config(written) == ("resnet34", Preprocessing.for_size(160))


BAD_CONFIGS = {
    "unknown field": ({"imagesize": 3}, "unknown field 'imagesize'; did you mean 'image_size'?"),
    "wrong kind": ({"image_size": "big"}, "image_size='big' must be a whole number"),
    "missing mean": ({"mean": None}, "wrong kind"),
    "two means": ({"mean": [0.5, 0.5]}, "mean must be a list of 3 values"),
    "zero std": ({"std": [0, 1, 1]}, "std must be a list of 3 values, each a finite number"),
    "crop beyond resize": ({"image_size": 300}, "at most resize=256"),
    "interpolation": ({"interpolation": "bilinaer"}, "did you mean 'bilinear'?"),
}


@pytest.mark.parametrize("change, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configs_are_refused(change, message):
    config = PREPROCESS.encoder_config("resnet18") | change
    with pytest.raises(UserError, match=re.escape(message)):
        Preprocessing.from_config(config)


def test_an_incomplete_config_is_refused():
    with pytest.raises(UserError, match="lacks backbone, resize"):
        Preprocessing.from_config({"image_size": 224, "mean": [], "std": [], "interpolation": ""})


@pytest.mark.parametrize("size", [(90, 120), (180, 100), (37, 64), (64, 64), (500, 500)])
def test_masks_stay_on_what_they_mark(size):
    mask = torch.zeros(2, *size, dtype=torch.bool)
    mask[0, size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = True
    mask[1, size[0] // 2 :] = True
    preprocessing = Preprocessing(64, 73, mean=(0, 0, 0), std=(1, 1, 1))
    fitted = preprocessing.fit_masks(mask)
    assert fitted.dtype == torch.bool and fitted.shape == (2, 64, 64)
    white = preprocessing(mask[:, None].expand(-1, 3, -1, -1).float())[:, 0]
    # the preprocessed picture of the mask is the mask, except at interpolated edges
    inside, outside = white > 0.99, white < 0.01
    assert fitted[inside].all() and not fitted[outside].any()
    assert (inside | outside).float().mean() > 0.85
    assert (fitted.float().mean((1, 2)) - white.mean((1, 2))).abs().max() < 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": 10**9},
        {"image_size": 10**9, "resize": 10**9},
        {"resize": 256.5},
        {"image_size": "224"},
        {"image_size": True},
        {"mean": [0.5, float("nan"), 0.5]},
        {"mean": [0.5, 1e30, 0.5]},
        {"mean": "0.5"},
        {"std": [0.2, float("inf"), 0.2]},
        {"std": [0.2, -0.2, 0.2]},
        {"std": [1e-38, 0.2, 0.2]},
        {"std": {"r": 1}},
        {"interpolation": None},
        {"backbone": 7},
    ],
)
def test_absurd_or_mistyped_configs_are_refused(changes):
    config = Preprocessing().encoder_config("resnet18") | changes
    name = list(changes)[0]
    with pytest.raises(UserError, match=rf"encoder_config.*\b{name}.* must be"):
        Preprocessing.from_config(config)


def test_a_picture_that_resizing_would_make_enormous_is_refused():
    with pytest.raises(UserError, match="60000 pixels long and 1 wide: .* 15,360,000 long; crop"):
        Preprocessing()(torch.full((3, 60000, 1), 0.5))
    assert Preprocessing()(torch.full((3, 20, 400), 0.5)).shape == (3, 224, 224)
