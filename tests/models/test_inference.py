"""An encoder's network alone, run by torch, equals the encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mcr
from mcr.models.inference import fastest_engine, fused, torch_network
from mcr.models.layouts import Weights
from mcr.models.loading import build_encoder
from mcr.models.preprocessing import Preprocessing

SMALL = Preprocessing.for_size(64)
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def encoder(request, make_network, tmp_path_factory):
    tensors = make_network(request.param).state_dict()
    path = tmp_path_factory.mktemp("fast") / "weights"
    return build_encoder(Weights(path, "test", tensors, request.param, SMALL))


def assert_close(computed, expected):
    """To 1e-4 of the largest feature."""
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_fusing_leaves_no_batch_normalisation_and_the_same_features(encoder):
    quick = fused(encoder)
    kinds = [type(module) for module in quick.modules() if isinstance(module, nn.BatchNorm2d)]
    assert kinds == [] and any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    with torch.no_grad():
        assert_close(quick.encode(PIXELS), encoder.encode(PIXELS))


@pytest.mark.parametrize("output", ["pooled", "spatial"])
def test_torch_network(encoder, output):
    with torch.no_grad():
        expected = encoder.encode(PIXELS, output)
    exact = torch_network(encoder, output, "fp32")(PIXELS)
    assert_close(exact, expected)
    rough = torch_network(encoder, output, "bf16")(PIXELS)
    error = (rough - expected).norm() / expected.norm()
    assert rough.dtype == torch.float32 and 1e-4 < error < 0.03


def test_onnx_is_chosen_only_where_it_is_exact_and_quicker():
    assert fastest_engine("cpu", "fp32") == "onnx"
    assert fastest_engine("cpu", "bf16") == "torch"
    assert fastest_engine("cuda", "fp32") == "torch"


def test_unknown_precision_is_refused(encoder):
    with pytest.raises(mcr.UserError, match="did you mean 'fp32'"):
        torch_network(encoder, "pooled", "fp23")
