"""Fixtures: torchvision's own networks, random weights *and* batch-norm statistics, as references.

Built from torchvision directly, not from `mcr.models.backbones`, so that they are independent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn


def _reference_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vit_ti_16":
        network: nn.Module = torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768)
        network.heads = nn.Identity()
    else:
        network = getattr(torchvision.models, name)()
        network.fc = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="session")
def make_network() -> Callable[[str], nn.Module]:
    """`make_network(name)`: torchvision's network in eval mode without a head; seed 0."""
    return _reference_network


@pytest.fixture(scope="session")
def network() -> nn.Module:
    """A ResNet-18."""
    return _reference_network("resnet18")


@pytest.fixture(scope="session")
def released(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That ResNet-18 in upstream's released layout."""
    path = tmp_path_factory.mktemp("weights") / "released.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    """`save(content)`: a file of torch.save."""

    def write(content: Any) -> Path:
        path = tmp_path / "weights.pth"
        torch.save(content, path)
        return path

    return write


@pytest.fixture
def checkpoint(network: nn.Module) -> dict[str, Any]:
    """What training saves of that ResNet-18, with every kind of thing that export must ignore."""
    tensors = copy.deepcopy(network).to(memory_format=torch.channels_last).state_dict()
    return {
        "format": "mcr-checkpoint-1",
        "step": 1200,
        "encoder": tensors,
        "encoder_config": {
            "backbone": "resnet18",
            "image_size": 224,
            "resize": 256,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bilinear",
        },
        "objectives": {"contrast.head.weight": torch.zeros(3, 3)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "rng": {"cpu": torch.get_rng_state(), "cuda": []},
        "config": {
            "seed": 0,
            "loss_weights": {"contrast": 0.5},
            "data": {"root": "resources/sample_droid"},
        },
        "statistics": {"state": {"mean": [0.0], "std": [1.0]}},
        "dataset": {"name": "sample_droid", "fingerprint": "abc123", "episodes": 16},
        "versions": {"mcr": "0.1.0", "torch": "2.6.0"},
    }


@pytest.fixture
def snapshot(network: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """`snapshot(*heads)`: state dict of upstream's DataParallel(MCR), with tensors called so."""

    def make(*heads: str) -> dict[str, Tensor]:
        tensors = {f"convnet.{name}": tensor for name, tensor in network.state_dict().items()}
        tensors |= {name: torch.zeros(2, 2) for name in heads}
        return {f"module.{name}": tensor for name, tensor in tensors.items()}

    return make


@pytest.fixture(scope="session")
def small_checkpoint(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint of that ResNet-18 at 64 pixels, which are quick to encode."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    content = {
        "format": "mcr-checkpoint-1",
        "step": 1200,
        "encoder": network.state_dict(),
        "encoder_config": {
            "backbone": "resnet18",
            "image_size": 64,
            "resize": 73,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bilinear",
        },
        "config": {"steps": 1200, "loss_weights": {"dynamics_alignment": 0.5}},
        "dataset": {"name": "sample_droid", "fingerprint": "abc123", "episodes": 16},
    }
    torch.save(content, path)
    return path
