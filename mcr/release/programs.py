"""Programs: an encoder as one file that runs without `mcr`, for ONNX Runtime or from torch.export.

    images    uint8   [B, 3, S, S]   RGB, resized and cropped by the caller, any B
    features  float32 [B, D]

Normalisation is inside and the input is uint8, so that no range can be confused. Resizing stays
outside: every camera has another size, and runtimes optimise programs of a fixed one. How to resize
is in the file: JSON under "mcr", in ONNX's metadata and in torch.export's extra file. Written by
`release.export`; each file is run and compared with the encoder before it is accepted.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcr.models.encoder import Encoder
from mcr.models.golden_pictures import golden_pictures
from mcr.models.inference import onnx_network
from mcr.models.onnx_file import DESCRIPTION, require_close, write_onnx
from mcr.models.preprocessing import Preprocessing

PROGRAM_SUFFIXES = (".onnx", ".pt2")


class ImagesToFeatures(nn.Module):
    """What a program computes: uint8 images [B, 3, S, S] -> pooled features float32 [B, D]."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        seen = encoder.preprocessing
        self.register_buffer("mean", torch.tensor(seen.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(seen.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.encode((images.float() / 255 - self.mean) / self.std)


def write_program(path: Path, encoder: Encoder, description: dict[str, Any]) -> None:
    """Write the encoder to `path`, ending in .onnx or .pt2, and compare what the file computes.

    Raises UserError if the extra "onnx" is not installed, or the encoder too large for ONNX.
    """
    images = cropped_golden_pictures(encoder.preprocessing)
    program = ImagesToFeatures(encoder).eval()
    if path.suffix == ".onnx":
        write_onnx(path, program, images, "images", description)
        computed = onnx_network(path, num_threads=0)(images)
    else:
        _write_torch_program(path, program, images, description)
        with torch.no_grad():
            computed = torch.export.load(path).module()(images)
    with torch.no_grad():
        require_close(computed, encoder(images), path.suffix)


def cropped_golden_pictures(preprocessing: Preprocessing) -> Tensor:
    """The golden pictures as a program takes them: uint8 [4, 3, S, S]."""
    unnormalised = dataclasses.replace(preprocessing, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = unnormalised(list(golden_pictures().values()))
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _write_torch_program(
    path: Path, network: nn.Module, example: Tensor, description: dict[str, Any]
) -> None:
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={DESCRIPTION: json.dumps(description)})
