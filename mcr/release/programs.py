"""Programs: an encoder as one file that runs without `mcr`, by ONNX Runtime or torch.export.

    images    uint8   [B, 3, S, S]   RGB, resized and cropped by the caller, any B
    features  float32 [B, D]

The program normalises, and its input is uint8, so that the range of pixels cannot be confused. It
does not resize, because cameras differ in size and runtimes optimise for a fixed size. The file
says how to resize: as JSON under "mcr", in ONNX's metadata or an extra file of torch.export's.
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
from mcr.models.onnx_file import DESCRIPTION, onnx_network, require_close, write_onnx
from mcr.models.preprocessing import Preprocessing

PROGRAM_SUFFIXES = (".onnx", ".pt2")


class ImagesToFeatures(nn.Module):
    """What a program computes: pooled features, float32 [B, D], of uint8 images [B, 3, S, S]."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        preprocessing = encoder.preprocessing
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.encode((images.float() / 255 - self.mean) / self.std)


def write_program(path: Path, suffix: str, encoder: Encoder, description: dict[str, Any]) -> None:
    """Write the encoder to `path` as a program, run it, and compare what it computes.

    suffix: the kind of program: ".onnx" or ".pt2", whatever `path` is called
    Raises UserError if the extra "onnx" is not installed, or the encoder is too large for ONNX.
    """
    images = cropped_golden_pictures(encoder.preprocessing)
    program = ImagesToFeatures(encoder).eval()
    if suffix == ".onnx":
        write_onnx(path, program, images, "images", description)
        computed = onnx_network(path, num_threads=0)(images)
    else:
        shapes = {"images": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(program, (images,), dynamic_shapes=shapes)
        with path.open("wb") as file:  # a path would have to end in .pt2
            torch.export.save(exported, file, extra_files={DESCRIPTION: json.dumps(description)})
        with torch.no_grad(), path.open("rb") as file:
            computed = torch.export.load(file).module()(images)
    with torch.no_grad():
        require_close(computed, encoder(images), suffix)


def cropped_golden_pictures(preprocessing: Preprocessing) -> Tensor:
    """Return the golden pictures as a program takes them: uint8 [4, 3, S, S]."""
    unnormalised = dataclasses.replace(preprocessing, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = unnormalised(list(golden_pictures().values()))
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
