"""The exponential moving average of the encoder's weights, which `mcr export --ema` exports.

It is a second set of weights beside those that are trained, and does not affect training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """After each step, average = decay * average + (1 - decay) * weights.

    Parameters and running statistics are averaged; counters are copied. It begins as the weights
    that the network has when this is constructed.
    """

    def __init__(self, network: nn.Module, decay: float):
        self._network, self._decay = network, decay
        self._tensors = {name: t.detach().clone() for name, t in network.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights into the average. A GPU's host does not wait."""
        present = self._network.state_dict()
        moving = [name for name, tensor in self._tensors.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [self._tensors[name] for name in moving],
            [present[name] for name in moving],
            1 - self._decay,
        )
        for name in self._tensors.keys() - {*moving}:
            self._tensors[name].copy_(present[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged state dict of the network: its own names."""
        return self._tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(tensors[name])
