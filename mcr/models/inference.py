"""An encoder's network for programs that run it over many pictures, or without `mcr`.

It begins where preprocessing ends: normalised pixels in, features out, nothing checked. `onnx_file`
writes it to files, the feature cache runs it. Policies use the Encoder itself.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from mcr.errors import import_extra, require_choice
from mcr.models.encoder import Encoder

ENGINES = ("torch", "onnx")
PRECISIONS = ("fp32", "bf16")

Network = Callable[[Tensor], Tensor]


class EncoderNetwork(nn.Module):
    """Normalised pixels float32 [B, 3, S, S] -> one output of the encoder, float32 [B, ...]."""

    def __init__(self, encoder: Encoder, output: str = "pooled"):
        super().__init__()
        self.encoder = encoder
        self.output = output

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder.encode(pixels, self.output)


def fastest_engine(device: str, precision: str) -> str:
    """ "onnx" where it can be used, which on a CPU takes half of torch's time; else "torch"."""
    extra = ("onnx", "onnxscript", "onnxruntime")
    usable = device == "cpu" and precision == "fp32"
    return "onnx" if usable and all(map(importlib.util.find_spec, extra)) else "torch"


def torch_network(encoder: Encoder, output: str, precision: str) -> Network:
    """The network run by torch on the encoder's device.

    precision: "fp32", or "bf16" for autocast: a third of the time on a CPU that has it, features
        differ by about 1%.
    """
    require_choice("precision", precision, PRECISIONS)
    device = next(encoder.parameters()).device
    network = EncoderNetwork(fused(encoder), output).to(memory_format=torch.channels_last)

    def run(pixels: Tensor) -> Tensor:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            return network(pixels).float()

    return run


def onnx_network(path: Path, num_threads: int) -> Network:
    """The network in the file of `onnx_file.write_network`, run by ONNX Runtime on the CPU."""
    onnxruntime = import_extra("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()

    def run(pixels: Tensor) -> Tensor:
        (features,) = session.run(None, {argument.name: pixels.numpy()})
        return torch.from_numpy(features)

    return run


def fused(encoder: Encoder) -> Encoder:
    """A copy of the encoder with batch normalisation folded into the convolutions before it.

    Equal up to rounding and quicker by a quarter. Networks that are not built of torchvision's
    ResNet blocks are copied as they are.
    """
    encoder = copy.deepcopy(encoder)
    for module in list(encoder.modules()):
        if isinstance(module, ResNet | BasicBlock | Bottleneck):
            for number in "123":
                _fuse(module, f"conv{number}", f"bn{number}")
            if isinstance(getattr(module, "downsample", None), nn.Sequential):
                _fuse(module.downsample, "0", "1")
    return encoder


def _fuse(module: nn.Module, convolution: str, normalisation: str) -> None:
    conv, norm = (getattr(module, name, None) for name in (convolution, normalisation))
    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        setattr(module, convolution, fuse_conv_bn_eval(conv, norm))
        setattr(module, normalisation, nn.Identity())
