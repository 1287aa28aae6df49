"""Golden features: a few numbers that show a change of any one feature."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from mcr.errors import UserError
from mcr.models.golden_pictures import golden_pictures
from mcr.release.golden_features import golden_deviation, golden_record

FEATURES = torch.rand(4, 512, generator=torch.Generator().manual_seed(0))


def test_pictures():
    pictures = golden_pictures()
    assert list(pictures) == ["marble", "mint", "wood", "wrist"]
    assert all(p.size == (320, 180) and p.mode == "RGB" for p in pictures.values())


def test_projections_are_a_cosine_transform():
    features = torch.zeros(4, 8)
    features[2, 3] = 2.0
    stored = golden_record(features)["features"]["wood"]
    assert stored["norm"] == 2.0
    expected = [2 * math.cos(math.pi * j * 3.5 / 8) for j in range(8)]
    assert stored["projections"] == pytest.approx(expected, abs=1e-5)


def test_the_same_features_do_not_deviate():
    assert golden_deviation(golden_record(FEATURES), FEATURES) == 0


@pytest.mark.parametrize("feature", [0, 1, 100, 255, 256, 511])
def test_each_feature_counts(feature):
    changed = FEATURES.clone()
    changed[1, feature] += 1.0  # of a norm of about 13
    assert golden_deviation(golden_record(FEATURES), changed) > 0.05


def test_rounding_of_another_machine_is_small():
    noise = 1e-5 * torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    assert golden_deviation(golden_record(FEATURES), FEATURES + noise) < 1e-4


def test_a_record_of_other_pictures_or_a_damaged_one_is_refused():
    record = golden_record(FEATURES)
    with pytest.raises(UserError, match="of other pictures"):
        golden_deviation(record | {"pictures": "0" * 64}, FEATURES)
    for damage in ({}, record | {"features": {"wood": {"norm": 0, "projections": []}}}, []):
        with pytest.raises(UserError, match="damaged"):
            golden_deviation(copy.deepcopy(damage), FEATURES)


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1e300, 1e300])
def test_no_number_in_a_record_hides_another_encoder(norm):
    record = golden_record(FEATURES)
    list(record["features"].values())[-1]["norm"] = norm
    assert not golden_deviation(record, FEATURES) < 1
