"""ONNX files: a network written for ONNX Runtime, run, and compared with the network itself.

The feature cache writes and runs an encoder's network alone, on normalised pixels.
`release.programs` writes programs that take raw pictures.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcr.errors import UserError, import_extra
from mcr.models.encoder import Encoder
from mcr.models.golden_pictures import golden_pictures
from mcr.models.inference import EncoderNetwork, Network

DESCRIPTION = "mcr"  # key of the JSON in the metadata of a file
_MAX_ONNX_BYTES = 2_000_000_000  # the limit of protobuf
_TOLERANCE = 1e-4  # of the largest feature


def write_network(path: Path, encoder: Encoder, output: str) -> None:
    """Write the network alone, from normalised pixels to `output`, and compare what it computes."""
    pixels = encoder.preprocess(list(golden_pictures().values()))
    network = EncoderNetwork(encoder, output).eval()
    write_onnx(path, network, pixels, "pixels", {})
    with torch.no_grad():
        require_close(onnx_network(path, num_threads=0)(pixels), network(pixels), path.suffix)


def onnx_network(path: Path, num_threads: int) -> Network:
    """Return the function that the file of an ONNX network computes, run on the CPU.

    num_threads: of ONNX Runtime; 0 = as many as there are cores
    """
    onnxruntime = import_extra("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()

    def run(pixels: Tensor) -> Tensor:
        (features,) = session.run(None, {argument.name: pixels.numpy()})
        return torch.from_numpy(features)

    return run


def require_close(computed: Tensor, expected: Tensor, what: str) -> None:
    """Raise RuntimeError unless the features agree to 1e-4 of the largest one."""
    largest = expected.abs().max().clamp(min=1e-30)  # avoids 0 / 0
    difference = ((computed - expected).abs().max() / largest).item()
    if not difference <= _TOLERANCE:  # NaN is a difference, too
        raise RuntimeError(f"the {what} program differs from the encoder by {difference:.1e}")


def write_onnx(
    path: Path, network: nn.Module, example: Tensor, argument: str, description: dict[str, Any]
) -> None:
    """Write `network` to `path` as ONNX, for any batch size.

    example:     an input of the network, [B, ...]
    argument:    the name of the input in the file; the output is called "features"
    description: written as JSON into the file's metadata
    Raises UserError if the extra "onnx" is not installed, or the network is too large for ONNX.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(module, "onnx")
    if (size := sum(p.numel() * p.element_size() for p in network.parameters())) > _MAX_ONNX_BYTES:
        raise UserError(
            f"{path.name}: {size / 1e9:.1f} GB of weights do not fit into one ONNX file (2 GB); "
            "export to .pt2 or a folder"
        )
    with warnings.catch_warnings():  # torch 2.11 warns of what it does itself
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
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
