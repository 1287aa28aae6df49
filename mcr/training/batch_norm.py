"""Batch normalisation over the global batch, or over groups of fixed size.

The result must not depend on the number of processes, so there is no "local" batch normalisation
over the images of one process:

- **global**, the default: statistics are those of the whole batch, whichever processes hold it.
- **ghost batches** (Hoffer et al. 2017): statistics are those of groups of consecutive clips, each
  inside one process. Processes exchange the running statistics only, which evaluation uses.

Ghost batches leak into contrasts between images: the images of one group share its statistics, by
which a network can tell them from images of other groups. Negatives must therefore come from the
same group (`time_contrastive.group`), and training refuses other settings. Contrasts between images
and dynamics leak nothing, because dynamics pass no batch normalisation.

As in `models.backbones.freeze_batch_norm`, layers change their class in place, so that the names of
tensors and modules stay the same. `pretrainer.py` and `engine.py` call this.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mcr.runs.gather import gather_rows, num_processes


def synchronise_batch_norm(network: nn.Module) -> None:
    """Normalise over the images of all processes, each of which must hold the same number."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d


def use_ghost_batches(network: nn.Module, num_images: int) -> None:
    """Normalise over groups of `num_images` consecutive images."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GhostBatchNorm2d
            module.num_images = num_images  # type: ignore[assignment]


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d of the concatenated images of all processes, with the same gradients.

    torch's SyncBatchNorm does not run on a CPU. On a GPU it makes the host wait in every layer, to
    find processes that have no images; here all processes have the same number.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or num_processes() == 1:
            return super().forward(images)
        self.num_batches_tracked.add_(1)
        normalise = _FusedGlobalNorm.apply if images.is_cuda else _global_norm
        running = self.running_mean, self.running_var
        return normalise(images, self.weight, self.bias, *running, self.momentum, self.eps)


def _global_norm(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """The plain form, differentiated by autograd. images: [N, C, H, W] of this process."""
    variance, mean = torch.var_mean(images.to(weight.dtype), dim=(0, 2, 3), correction=0)
    everyones, _ = gather_rows(torch.stack([mean, variance])[None])  # [processes, 2, C]
    means, variances = everyones.unbind(1)
    mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
    count = images.numel() / images.shape[1] * len(everyones)
    running_mean.lerp_(mean.detach(), momentum)
    running_var.lerp_(variance.detach() * count / (count - 1), momentum)
    scale = weight * (variance + eps).rsqrt()
    shift = bias - mean * scale
    normalised = images * scale[:, None, None] + shift[:, None, None]
    return normalised.to(images.dtype)


class _FusedGlobalNorm(torch.autograd.Function):
    """The same with torch's kernels: one pass over the images per step, in any memory layout."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, inverse_std = torch.batch_norm_stats(images, eps)
        everyones, _ = gather_rows(torch.stack([mean, inverse_std])[None])
        means, inverse_stds = (part.contiguous() for part in everyones.unbind(1))
        count = images.numel() // images.shape[1]
        counts = torch.full((len(means),), count, dtype=mean.dtype, device=images.device)
        mean, inverse_std = torch.batch_norm_gather_stats_with_counts(
            images, means, inverse_stds, running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(images, weight, mean, inverse_std, counts.int())
        return torch.batch_norm_elemt(images, weight, bias, mean, inverse_std, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, inverse_std, counts = ctx.saved_tensors
        # Both tensors must have the same memory layout.
        is_last = images.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        gradient = gradients[0].contiguous(memory_format=layout)
        sums, sums_from_mean, of_weight, of_bias = torch.batch_norm_backward_reduce(
            gradient, images, mean, inverse_std, weight, True, True, True
        )
        everyones = torch.stack([sums, sums_from_mean])
        dist.all_reduce(everyones)
        of_images = torch.batch_norm_backward_elemt(
            gradient, images, mean, inverse_std, weight, everyones[0], everyones[1], counts
        )
        return of_images, of_weight, of_bias, None, None, None, None


class GhostBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that in training normalises each group of `num_images` consecutive images alone.

    Running statistics are updated once per call, with the mean of the statistics of the groups.
    """

    num_images: int
    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        groups = images.split(self.num_images)
        means = self.running_mean.new_zeros(len(groups), self.num_features)
        variances = torch.ones_like(means)
        normalised = torch.cat(
            [  # with a momentum of 1 the "running" statistics are those of the group
                F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
                for group, mean, variance in zip(groups, means, variances, strict=True)
            ]
        )
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(means.mean(0), self.momentum)
        self.running_var.lerp_(variances.mean(0), self.momentum)
        return normalised


def average_running_statistics(network: nn.Module) -> None:
    """Average the running statistics of ghost batches over processes, which saw different groups.

    Running statistics are linear in the statistics of the groups, so their mean equals what one
    process with all groups would have.
    """
    layers = [module for module in network.modules() if isinstance(module, GhostBatchNorm2d)]
    if not layers or num_processes() == 1:
        return
    statistics = [s for layer in layers for s in (layer.running_mean, layer.running_var)]
    together = torch.cat(statistics)
    dist.all_reduce(together)
    together /= num_processes()
    for own, mean in zip(statistics, together.split([len(s) for s in statistics]), strict=True):
        own.copy_(mean)
