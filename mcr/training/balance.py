"""Balance: factors on the losses that make their gradients on the embeddings equally strong.

With fixed weights, the objective with the strongest gradient decides what the encoder learns, and
which one that is depends on the data and on the network. With `balance_losses=true`, the weights of
the objectives say in which ratio their gradients are. The pretrainer calls this at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mcr.runs.gather import gather_rows

_DECAY = 0.99  # of the moving average, which is over about 100 steps
_WEAKEST = 1e-8  # so that a loss without a gradient does not get an infinite factor


class LossBalance(nn.Module):
    """Moving averages of how strongly each objective pulls at the embedding of an image.

    names: of the objectives of one data set, in the order in which `factors` has them

    Checkpoints hold the averages, so a resumed run goes on with the same factors.
    """

    total: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("total", torch.zeros(len(self.names)))
        self.register_buffer("count", torch.zeros(()))

    def observe(self, losses: Mapping[str, Tensor], embeddings: Tensor) -> None:
        """Count the gradients of one step in. All processes must call this.

        losses:     of the objectives, without weights
        embeddings: float32 [B, F, D] that they were computed from
        """
        pulls = torch.stack([pull(losses[name], embeddings) for name in self.names])
        everyones, _ = gather_rows(pulls[None])
        self.total.mul_(_DECAY).add_(everyones.mean(dim=0))
        self.count.mul_(_DECAY).add_(1)

    def factors(self) -> dict[str, Tensor]:
        """Return the factor on each loss. Their product is 1; before any step all are 1."""
        averages = (self.total / self.count.clamp(min=1)).clamp(min=_WEAKEST)
        factors = averages.log().mean().exp() / averages
        return dict(zip(self.names, factors.unbind(), strict=True))


def pull(loss: Tensor, embeddings: Tensor, retain_graph: bool = True) -> Tensor:
    """Return the norm of a loss's gradient on the embedding of an image, a scalar.

    It is summed over images. Because a loss is a mean over images, that is the mean norm for the
    loss of a single image.

    embeddings: [B, F, D]
    """
    (gradient,) = torch.autograd.grad(loss, embeddings, retain_graph=retain_graph)
    return gradient.norm(dim=-1).sum()
