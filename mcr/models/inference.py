"""An encoder's network alone, run by torch as fast as possible over many pictures.

It takes pixels that are preprocessed already and checks nothing. The feature cache and the rollouts
run it; `models.onnx_file` writes it for ONNX Runtime. Policies that learn use the Encoder itself.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from mcr.errors import require_choice
from mcr.models.encoder import Encoder

ENGINES = ("torch", "onnx")
PRECISIONS = ("fp32", "bf16")

Network = Callable[[Tensor], Tensor]


class EncoderNetwork(nn.Module):
    """Maps normalised pixels, float32 [B, 3, S, S], to one output of the encoder, [B, ...].

    output: "pooled", "spatial" or "tokens", as of `Encoder.features`
    """

    def __init__(self, encoder: Encoder, output: str = "pooled"):
        super().__init__()
        self.encoder = encoder
        self.output = output

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder.encode(pixels, self.output)


def fastest_engine(device: str, precision: str) -> str:
    """Return "onnx" if it can be used, which takes half of torch's time on a CPU; else "torch"."""
    extra = ("onnx", "onnxscript", "onnxruntime")
    usable = device == "cpu" and precision == "fp32"
    return "onnx" if usable and all(map(importlib.util.find_spec, extra)) else "torch"


def torch_network(encoder: Encoder, output: str, precision: str) -> Network:
    """Return the function from normalised pixels to `output`, on the encoder's device.

    precision: "fp32", or "bf16" for autocast, which takes a third of the time on a CPU with
        bfloat16 and changes features by about 1%
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


def fused(encoder: Encoder) -> Encoder:
    """Return a copy of the encoder with batch normalisation folded into the convolutions.

    It computes the same up to rounding, in three quarters of the time. Networks without
    torchvision's ResNet blocks are copied unchanged.
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
