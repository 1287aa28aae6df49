"""ONNX files compute what the network computes, or are refused."""

from __future__ import annotations

import pytest
import torch

import mcr
from mcr.models.onnx_file import onnx_network, require_close, write_network

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_an_encoders_network(small_checkpoint, tmp_path):
    encoder = mcr.load_model(small_checkpoint)
    write_network(tmp_path / "network.onnx", encoder, "spatial")
    computed = onnx_network(tmp_path / "network.onnx", num_threads=1)(PIXELS)
    with torch.no_grad():
        expected = encoder.encode(PIXELS, "spatial")
    atol = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(computed, expected, rtol=0, atol=atol)


def test_another_result_is_not_close():
    expected = torch.tensor([1.0, 2.0])
    require_close(torch.tensor([1.0, 2.0001]), expected, ".onnx")
    with pytest.raises(RuntimeError, match=r"differs from the encoder by 1\.0e-03"):
        require_close(torch.tensor([1.0, 2.002]), expected, ".onnx")
    with pytest.raises(RuntimeError, match="differs from the encoder by nan"):
        require_close(torch.tensor([1.0, torch.nan]), expected, ".onnx")
