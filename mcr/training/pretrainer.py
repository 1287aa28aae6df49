"""The pretrainer: encoder + objectives -> losses. This is the whole method on one screen.

One encoder embeds the five frames of a clip. Three objectives make the embeddings hold what the
robot does (dynamics alignment, action prediction) and the order of frames in time (time contrast).
A fourth one, off by default, makes them hold what a teacher sees (distillation).
After training, everything but the encoder is discarded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mcr.data.batch import NUM_FRAMES, Batch, Dimensions, TaughtBatch
from mcr.models.backbones import freeze_batch_norm
from mcr.models.crops import network_input
from mcr.models.effective_rank import effective_rank
from mcr.models.encoder import Encoder
from mcr.models.preprocessing import Preprocessing
from mcr.models.trainable import build_network
from mcr.objectives import ObjectivesConfig, build_objectives
from mcr.runs.gather import gather_rows
from mcr.training.batch_norm import synchronise_batch_norm, use_ghost_batches


class SignalNormaliser(nn.Module):
    """Normalises states and actions to zero mean and unit variance over the data set.

    statistics: {"state" | "action": {"mean": [D], "std": [D]}}; checkpoints hold them. A number
    that never changes is only shifted.
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
    """The encoder with its objectives: the module that is optimised.

    forward(batch) -> (loss, metrics, embeddings [B, F, D]); the loss is the weighted sum of
    metrics["<objective>/loss"].

    teacher:         None = there is none; otherwise its features go into the batch
    compiled_encode: replaces `encode` in training; None = nothing is compiled
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
        ghost_batch: int = 0,
        teacher: Encoder | None = None,
    ):
        """statistics: see SignalNormaliser; None = raw states and actions (the `paper` recipe)

        frozen_bn, ghost_batch: see ModelConfig
        teacher: whose features `distillation` matches; frozen, and in eval mode whatever happens
        """
        super().__init__()
        self.preprocessing = preprocessing
        self.compiled_encode: Callable[..., Tensor] | None = None
        self.encoder = build_network(backbone, preprocessing.image_size)
        if frozen_bn:
            freeze_batch_norm(self.encoder)
        elif ghost_batch:
            use_ghost_batches(self.encoder, ghost_batch * NUM_FRAMES)
        else:
            synchronise_batch_norm(self.encoder)
        embed_dim: Any = self.encoder.embed_dim
        self.teacher = teacher
        dimensions = replace(dimensions, teacher=teacher.embed_dim if teacher else 0)
        self.objectives = build_objectives(objectives, loss_weights, embed_dim, dimensions)
        self.loss_weights = loss_weights
        self.normalise = SignalNormaliser(statistics) if statistics else nn.Identity()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        embeddings = self.embed(batch)
        batch = self.prepare(batch)
        metrics: dict[str, Tensor] = {}
        loss = embeddings.new_zeros(())
        for name, objective in self.objectives.items():
            objective_loss, objective_metrics = objective(embeddings, batch)
            loss = loss + self.loss_weights[name] * objective_loss
            metrics[f"{name}/loss"] = objective_loss.detach()
            metrics |= {f"{name}/{key}": value for key, value in objective_metrics.items()}
        return loss, metrics, embeddings

    def prepare(self, batch: Batch) -> Batch:
        """Return what the objectives read: normalised signals, and the teacher's features."""
        prepared = self.normalise(batch)
        if self.teacher is None:
            return prepared
        return TaughtBatch(**vars(prepared), teacher_features=self._teacher_features(batch))

    @torch.no_grad()
    def _teacher_features(self, batch: Batch) -> Tensor:
        """The teacher's features of the crops that the encoder sees, float32 [B, F, T]."""
        assert self.teacher is not None
        p = self.teacher.preprocessing
        inputs = network_input(batch.frames, batch.crops, p.image_size, p.mean, p.std, batch.colors)
        features = self.teacher.encode(inputs).float()
        return rearrange(features, "(b f) d -> b f d", f=NUM_FRAMES)

    def embed(self, batch: Batch) -> Tensor:
        """Return the embeddings of a batch's frames, float32 [B, F, D]."""
        encode = (self.compiled_encode if self.training else None) or self.encode
        embeddings = encode(batch.frames, batch.crops, batch.colors)
        return rearrange(embeddings, "(b f) d -> b f d", f=NUM_FRAMES)

    def encode(self, frames: Tensor, crops: Tensor, colors: Tensor) -> Tensor:
        """Return the embeddings of stored frames, float32 [B * F, D]."""
        return self.encoder(self.network_input(frames, crops, colors)).float()

    def network_input(self, frames: Tensor, crops: Tensor, colors: Tensor | None = None) -> Tensor:
        """Call `crops.network_input` for this encoder. All tensors are on its device."""
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
    """How strongly each objective changes the embeddings: {"<objective>/embedding_gradient": norm}.

    The norm is that of the gradient of the weighted loss with respect to the embedding of an image,
    summed over images. Because the loss is a mean over images, this is the mean norm for the loss
    of a single image.

    embeddings: float32 [B, F, D] of `batch`
    This runs the heads once more, but not the encoder, and changes no gradient. It draws random
    numbers as a step does. All processes must call it.
    """
    batch = model.prepare(batch)
    embeddings = embeddings.detach().requires_grad_()
    norms = {}
    for name, objective in model.objectives.items():
        loss, _ = objective(embeddings, batch)
        (gradient,) = torch.autograd.grad(model.loss_weights[name] * loss, embeddings)
        norms[f"{name}/embedding_gradient"] = gradient.norm(dim=-1).sum()
    return norms
