"""Pretrainer: encoder + objectives -> losses. The whole method on one screen.

A clip's five frames go through one encoder; three heads ask of the embeddings where the robot is
and what it does (dynamics alignment, action prediction) and when (time contrast). Everything but
the encoder is thrown away after training.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from mcr.data.batch import NUM_FRAMES, Batch, Dimensions
from mcr.data.crops import network_input
from mcr.models.backbones import BACKBONES, build_backbone, freeze_batch_norm
from mcr.models.preprocessing import Preprocessing
from mcr.objectives import ObjectivesConfig, build_objectives


class SignalNormaliser(nn.Module):
    """States and actions to zero mean and unit variance, by statistics that travel in checkpoints.

    statistics: {"state" | "action": {"mean": [D], "std": [D]}}. A signal that never changes is only
    shifted. Angles are treated as numbers: DROID's Euler angles wrap at +-pi.
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

    def __init__(
        self,
        backbone: str,
        preprocessing: Preprocessing,
        objectives: ObjectivesConfig,
        loss_weights: dict[str, float],
        dimensions: Dimensions,
        statistics: dict[str, dict[str, list[float]]] | None,
        frozen_bn: bool = False,
    ):
        """statistics: None = states and actions as they are (the `paper` recipe)."""
        super().__init__()
        self.preprocessing = preprocessing
        self.encoder = build_backbone(backbone, preprocessing.image_size)
        if frozen_bn:
            freeze_batch_norm(self.encoder)
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
        p = self.preprocessing
        images = network_input(batch.frames, batch.crops, p.image_size, p.mean, p.std)
        return rearrange(self.encoder(images).float(), "(b f) d -> b f d", f=NUM_FRAMES)


@torch.no_grad()
def embedding_health(embeddings: Tensor) -> dict[str, Tensor]:
    """Is the space collapsing? embeddings: float32 [B, F, D].

    spread: mean standard deviation over the batch of a dimension; 0 = all images look alike.
    effective_rank: exp of the entropy of the normalised singular values (Roy & Vetterli 2007);
    between 1 and min(B * F, D).
    """
    centred = rearrange(embeddings, "b f d -> (b f) d")
    centred = centred - centred.mean(0)
    share = torch.linalg.svdvals(centred)
    share = share / share.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"embedding/spread": centred.std(0).mean(), "embedding/effective_rank": entropy.exp()}
