"""ONNX files: a network as one file for ONNX Runtime, compared with the network itself.

The feature cache writes an encoder's network for `inference.onnx_network`; `release.programs`
writes whole encoders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcr.errors import UserError, import_extra
from mcr.models.encoder import Encoder
from mcr.models.golden_pictures import golden_pictures
from mcr.models.inference import EncoderNetwork, onnx_network

DESCRIPTION = "mcr"  # where programs keep their JSON
_MAX_ONNX_BYTES = 2_000_000_000  # protobuf holds no more
_TOLERANCE = 1e-4  # of the largest feature


def write_network(path: Path, encoder: Encoder, output: str) -> None:
    """Write the network alone, normalised pixels -> `output`, as ONNX for `onnx_network`."""
    pixels = encoder.preprocess(list(golden_pictures().values()))
    network = EncoderNetwork(encoder, output).eval()
    write_onnx(path, network, pixels, "pixels", {})
    with torch.no_grad():
        require_close(onnx_network(path, num_threads=0)(pixels), network(pixels), path.suffix)


def require_close(computed: Tensor, expected: Tensor, what: str) -> None:
    """Raise RuntimeError unless both agree to 1e-4 of the largest feature."""
    largest = expected.abs().max().clamp(min=1e-30)  # of a dead encoder it is 0
    difference = ((computed - expected).abs().max() / largest).item()
    if not difference <= _TOLERANCE:  # not a number is too different, too
        raise RuntimeError(f"the {what} program differs from the encoder by {difference:.1e}")


def write_onnx(
    path: Path, network: nn.Module, example: Tensor, argument: str, description: dict[str, Any]
) -> None:
    """Write `network` to `path` for any batch size; `description` goes into ONNX's metadata.

    example: what the network takes, [B, ...]; argument: that input's name in the file
    Raises UserError if the extra "onnx" is not installed, or the network too large for ONNX.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(module, "onnx")
    if (size := sum(p.numel() * p.element_size() for p in network.parameters())) > _MAX_ONNX_BYTES:
        raise UserError(
            f"{path.name}: {size / 1e9:.1f} GB of weights do not fit into one ONNX file (2 GB); "
            "export to .pt2 or a folder"
        )
    program = torch.onnx.export(
        network,
        (example,),
        input_names=[argument],
        output_names=["features"],
        dynamic_shapes={argument: {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[DESCRIPTION] = json.dumps(description)
    program.save(path, external_data=False)
