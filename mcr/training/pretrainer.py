"""Pretrainer: encoder + objectives -> losses. The whole method on one screen.

A clip's five frames go through one encoder; three heads ask of the embeddings where the robot is
and what it does (dynamics alignment, action prediction) and when (time contrast). Everything but
the encoder is thrown away after training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from mcr.data.batch import NUM_FRAMES, Batch, Dimensions
from mcr.models.backbones import BACKBONES, build_backbone, freeze_batch_norm
from mcr.models.crops import network_input
from mcr.models.effective_rank import effective_rank
from mcr.models.preprocessing import Preprocessing
from mcr.objectives import ObjectivesConfig, build_objectives
from mcr.runs.gather import gather_rows
from mcr.training.batch_norm import synchronise_batch_norm, use_ghost_batches


class SignalNormaliser(nn.Module):
    """States and actions to zero mean and unit variance, by statistics that travel in checkpoints.

    statistics: {"state" | "action": {"mean": [D], "std": [D]}}. A signal that never changes is only
    shifted.
    """

    def __init__(self, statistics: dict[str, dict[str, list[float]]]):
        super().__init__()
        for name, values in statistics.items():
            std = torch.tensor(values["std"])
            self.register_buffer(f"{name}_mean", torch.tensor(values["mean"]))
            self.register_buffer(f"{name}_std", torch.where(std < 1e-6, 1.0, std))

    def forward(self, batch: Batch) -> Batch:
        return replace(
            batch,
            actions=self._normalised("action", batch.actions),
            window_actions=self._normalised("action", batch.window_actions),
            window_states=self._normalised("state", batch.window_states),
        )

    def _normalised(self, name: str, values: Tensor) -> Tensor:
        return (values - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_std")


class Pretrainer(nn.Module):
    """What the training loop optimises.

    forward(batch) -> (loss, metrics, embeddings [B, F, D]); the loss is the weighted sum of
    metrics["<objective>/loss"].
    """

    compiled_encode: Callable[..., Tensor] | None = None  # used in training if there is one

    def __init__(
        self,
        backbone: str,
        preprocessing: Preprocessing,
        objectives: ObjectivesConfig,
        loss_weights: dict[str, float],
        dimensions: Dimensions,
        statistics: dict[str, dict[str, list[float]]] | None,
        frozen_bn: bool = False,
        ghost_batch: int = 0,
    ):
        """statistics: None = states and actions as they are (the `paper` recipe).

        frozen_bn, ghost_batch: see ModelConfig.
        """
        super().__init__()
        self.preprocessing = preprocessing
        self.encoder = build_backbone(backbone, preprocessing.image_size)
        if frozen_bn:
            freeze_batch_norm(self.encoder)
        elif ghost_batch:
            use_ghost_batches(self.encoder, ghost_batch * NUM_FRAMES)
        else:
            synchronise_batch_norm(self.encoder)
        embed_dim = BACKBONES[backbone].embed_dim
        self.objectives = build_objectives(objectives, loss_weights, embed_dim, dimensions)
        self.loss_weights = loss_weights
        self.normalise = SignalNormaliser(statistics) if statistics else nn.Identity()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        embeddings = self.embed(batch)
        batch = self.normalise(batch)
        metrics: dict[str, Tensor] = {}
        loss = embeddings.new_zeros(())
        for name, objective in self.objectives.items():
            objective_loss, objective_metrics = objective(embeddings, batch)
            loss = loss + self.loss_weights[name] * objective_loss
            metrics[f"{name}/loss"] = objective_loss.detach()
            metrics |= {f"{name}/{key}": value for key, value in objective_metrics.items()}
        return loss, metrics, embeddings

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings float32 [B, F, D] of a batch's frames."""
        encode = (self.compiled_encode if self.training else None) or self.encode
        embeddings = encode(batch.frames, batch.crops, batch.colors)
        return rearrange(embeddings, "(b f) d -> b f d", f=NUM_FRAMES)

    def encode(self, frames: Tensor, crops: Tensor, colors: Tensor) -> Tensor:
        """Embeddings float32 [B * F, D] of frames as they are stored."""
        return self.encoder(self.network_input(frames, crops, colors)).float()

    def network_input(self, frames: Tensor, crops: Tensor, colors: Tensor | None = None) -> Tensor:
        """`crops.network_input` for this encoder; everything on its device."""
        p = self.preprocessing
        return network_input(frames, crops, p.image_size, p.mean, p.std, colors)


@torch.no_grad()
def embedding_health(embeddings: Tensor) -> dict[str, Tensor]:
    """Return measures of a collapse of the embeddings, float32 [B, F, D], of all processes.

    embedding/spread: mean over the dimensions of their standard deviation over the images; 0 if all
        images look alike
    embedding/effective_rank: see `models.effective_rank`; of the first 1,024 images, which bounds
        its cost
    """
    everyones, _ = gather_rows(rearrange(embeddings, "b f d -> (b f) d"))
    return {
        "embedding/spread": everyones.std(0).mean(),
        "embedding/effective_rank": effective_rank(everyones[:1024]),
    }


def embedding_gradients(model: Pretrainer, embeddings: Tensor, batch: Batch) -> dict[str, Tensor]:
    """How hard each objective pulls: the norm of the gradient of its weighted loss with respect to
    an image's embedding, as a mean over images (each as if its own share were the loss).

    embeddings: float32 [B, F, D] of `batch`. Runs the heads once more, but not the encoder; changes
    no gradient. Draws random numbers as a step does; all processes must call it.
    """
    batch = model.normalise(batch)
    embeddings = embeddings.detach().requires_grad_()
    norms = {}
    for name, objective in model.objectives.items():
        loss, _ = objective(embeddings, batch)
        (gradient,) = torch.autograd.grad(model.loss_weights[name] * loss, embeddings)
        norms[f"{name}/embedding_gradient"] = gradient.norm(dim=-1).sum()
    return norms
