"""What LeRobot's own preprocessor does to pictures is taken back, or refused."""

import pytest
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import NormalizerProcessorStep

from mcr.errors import UserError
from mcr.lerobot.normalisation import RawPictures

CAMERAS = ("observation.images.front", "observation.images.wrist")
MODES = [mode for mode in NormalizationMode if mode is not NormalizationMode.IDENTITY]


@pytest.fixture
def statistics() -> dict:
    """Different ones of each camera and colour, as LeRobot's: [3, 1, 1]."""
    torch.manual_seed(0)
    low = {name: 0.3 * torch.rand(2, 3, 1, 1) for name in ("min", "q01", "q10")}
    high = {name: 0.7 + 0.3 * torch.rand(2, 3, 1, 1) for name in ("max", "q99", "q90")}
    others = {"mean": torch.rand(2, 3, 1, 1), "std": 0.1 + torch.rand(2, 3, 1, 1)}
    found = low | high | others
    return {
        camera: {name: value[row].numpy() for name, value in found.items()}
        for row, camera in enumerate(CAMERAS)
    }


def normalise(mode: NormalizationMode, statistics: dict, pictures: dict) -> dict:
    """By LeRobot's own code."""
    features = {key: PolicyFeature(FeatureType.VISUAL, (3, 8, 8)) for key in pictures}
    step = NormalizerProcessorStep(features, {FeatureType.VISUAL: mode}, statistics)
    return step._normalize_observation(pictures, inverse=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("leading", [(2,), (2, 3)])
def test_normalisation_is_taken_back(mode, leading, statistics):
    raw = {camera: torch.randint(0, 256, (*leading, 3, 8, 8)).float() / 255 for camera in CAMERAS}
    normalised = normalise(mode, statistics, raw)
    inverse = RawPictures(mode, CAMERAS, statistics)
    for camera in CAMERAS:
        assert (normalised[camera] - raw[camera]).abs().max() > 0.1
        assert (inverse(camera, normalised[camera]) - raw[camera]).abs().max() < 1e-6


def test_a_colour_without_spread_is_taken_back(statistics):
    statistics[CAMERAS[0]]["max"] = statistics[CAMERAS[0]]["min"]
    value = torch.as_tensor(statistics[CAMERAS[0]]["min"])
    raw = {CAMERAS[0]: value.expand(1, 3, 8, 8)}
    normalised = normalise(NormalizationMode.MIN_MAX, statistics, raw)
    back = RawPictures(NormalizationMode.MIN_MAX, CAMERAS, statistics)
    assert torch.allclose(back(CAMERAS[0], normalised[CAMERAS[0]]), raw[CAMERAS[0]], atol=1e-6)


def test_identity_changes_nothing():
    pictures = torch.rand(2, 3, 8, 8)
    raw = RawPictures(NormalizationMode.IDENTITY, CAMERAS, None)
    assert raw(CAMERAS[0], pictures) is pictures


@pytest.mark.parametrize("mode", MODES)
def test_unknown_statistics_are_refused(mode, statistics):
    with pytest.raises(UserError, match="given no statistics of observation.images.front"):
        RawPictures(mode, CAMERAS, None)(CAMERAS[0], torch.rand(1, 3, 8, 8))
    del statistics[CAMERAS[1]]
    with pytest.raises(UserError, match="data set has no .* of observation.images.wrist"):
        RawPictures(mode, CAMERAS, statistics)


def test_statistics_are_part_of_the_state(statistics):
    mode = NormalizationMode.MEAN_STD
    saved = RawPictures(mode, CAMERAS, statistics).state_dict()
    loaded = RawPictures(mode, CAMERAS, None)
    loaded.load_state_dict(saved)
    zero = loaded(CAMERAS[1], torch.zeros(1, 3, 1, 1))
    assert torch.allclose(zero[0], torch.as_tensor(statistics[CAMERAS[1]]["mean"]))
