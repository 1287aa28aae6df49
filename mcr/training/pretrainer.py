"""The pretrainer: encoder + objectives -> losses. This is the whole method on one screen.

One encoder embeds the five frames of a clip. Three objectives make the embeddings hold what the
robot does (dynamics alignment, action prediction) and the order of frames in time (time contrast).
Two more are off by default: embeddings may hold what a teacher sees (distillation), and be as close
as the states of the robot are (state contrast).

Robots differ in their states and actions. So each data set has objectives of its own, with their
heads, and its signals are normalised by its own statistics. Negatives are clips of the same data
set, because a clip of another one could be told apart by its looks alone.

After training, everything but the encoder is discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mcr.data.batch import (
    ALL_FRAMES,
    NUM_FRAMES,
    Batch,
    Dimensions,
    MixedBatch,
    TaughtBatch,
    labelled,
)
from mcr.models.backbones import freeze_batch_norm
from mcr.models.crops import network_input
from mcr.models.effective_rank import effective_rank
from mcr.models.encoder import Encoder
from mcr.models.preprocessing import Preprocessing
from mcr.models.trainable import build_network
from mcr.objectives import ObjectivesConfig, build_objectives
from mcr.runs.gather import gather_rows
from mcr.training.balance import LossBalance, pull
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
            actions=self._normalised_chunks(batch.actions),
            window_actions=self._normalised("action", batch.window_actions),
            window_states=self._normalised("state", batch.window_states),
        )

    def _normalised_chunks(self, actions: Tensor) -> Tensor:
        """[B, F, K * A] -> the same shape."""
        width = len(self.get_buffer("action_mean"))
        if not width:  # data without actions
            return actions
        chunks = rearrange(actions, "b f (k a) -> b f k a", a=width)
        return self._normalised("action", chunks).flatten(-2)

    def _normalised(self, name: str, values: Tensor) -> Tensor:
        return (values - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_std")


class Pretrainer(nn.Module):
    """The encoder with its objectives: the module that is optimised.

    forward(batches) -> (loss, metrics, {data set: embeddings [B, F, D]}). The loss of a data set is
    the weighted sum of metrics["<objective>/loss"], or of metrics["<data set>/<objective>/loss"] if
    data sets have names. The whole loss is their mean over clips.

    objectives:      by the same names
    teacher:         None = there is none; otherwise its features go into the batch
    compiled_encode: replaces `encode` in training; None = nothing is compiled
    """

    def __init__(
        self,
        backbone: str,
        preprocessing: Preprocessing,
        objectives: ObjectivesConfig,
        loss_weights: dict[str, float],
        dimensions: Mapping[str, Dimensions],
        statistics: Mapping[str, dict[str, dict[str, list[float]]]],
        frozen_bn: bool = False,
        ghost_batch: int = 0,
        teacher: Encoder | None = None,
        places: Sequence[int] = ALL_FRAMES,
        balance_losses: bool = False,
    ):
        """dimensions: of each data set, by name

        statistics: of each data set, see SignalNormaliser; raw states and actions for data sets
                    that it lacks (the `paper` recipe)
        frozen_bn, ghost_batch: see ModelConfig
        places: which of the five frames of a clip the batches hold
        teacher: whose features `distillation` matches; frozen, and in eval mode whatever happens
        balance_losses: see Config
        """
        super().__init__()
        self.preprocessing = preprocessing
        self.compiled_encode: Callable[..., Tensor] | None = None
        self.encoder = build_network(backbone, preprocessing.image_size)
        if frozen_bn:
            freeze_batch_norm(self.encoder)
        elif ghost_batch:
            use_ghost_batches(self.encoder, ghost_batch * len(places))
        else:
            synchronise_batch_norm(self.encoder)
        embed_dim: Any = self.encoder.embed_dim
        self.teacher = teacher
        self.objectives = nn.ModuleDict()
        for data_set, dims in dimensions.items():
            dims = replace(dims, teacher=teacher.embed_dim if teacher else 0)
            built = build_objectives(objectives, loss_weights, embed_dim, dims)
            self.objectives.update({labelled(data_set, name): built[name] for name in built})
        self.loss_weights = {name: loss_weights[name] for name in built}
        self.data_sets = tuple(dimensions)
        self.balances = nn.ModuleList(
            LossBalance([*self.loss_weights]) for _ in self.data_sets if balance_losses
        )
        self.normalisers = nn.ModuleList(
            SignalNormaliser(statistics[name]) if name in statistics else nn.Identity()
            for name in self.data_sets
        )
        self._places = list(places)

    def forward(self, batches: MixedBatch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        embeddings = self.embed(batches)
        num_clips = sum(len(batch) for batch in batches.values())
        metrics: dict[str, Tensor] = {}
        loss = torch.zeros((), device=next(iter(embeddings.values())).device)
        for data_set, batch in batches.items():
            losses, of_set = self.losses(data_set, embeddings[data_set], batch)
            if self.training and self.balances:
                self._balance(data_set).observe(losses, embeddings[data_set])
            weights = self.weights(data_set)
            weighted = sum(weights[name] * value for name, value in losses.items())
            loss = loss + len(batch) / num_clips * weighted
            metrics |= of_set
        return loss, metrics, embeddings

    def weights(self, data_set: str) -> dict[str, float | Tensor]:
        """Return the weight of each objective on a data set as it is now."""
        if not self.balances:
            return {**self.loss_weights}
        factors = self._balance(data_set).factors()
        return {name: weight * factors[name] for name, weight in self.loss_weights.items()}

    def _balance(self, data_set: str) -> LossBalance:
        balance = self.balances[self.data_sets.index(data_set)]
        assert isinstance(balance, LossBalance)
        return balance

    def losses(
        self, data_set: str, embeddings: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss of each objective on clips of one data set, and all metrics.

        embeddings: float32 [B, F, D] of `batch`
        """
        batch = self.prepare(data_set, batch)
        losses, metrics = {}, {}
        for name in self.loss_weights:
            label = labelled(data_set, name)
            losses[name], of_objective = self.objectives[label](embeddings, batch)
            metrics[f"{label}/loss"] = losses[name].detach()
            metrics |= {f"{label}/{key}": value for key, value in of_objective.items()}
        return losses, metrics

    def prepare(self, data_set: str, batch: Batch) -> Batch:
        """Return what the objectives read: normalised signals, and the teacher's features."""
        prepared = self.normalisers[self.data_sets.index(data_set)](batch)
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

    def embed(self, batches: MixedBatch) -> dict[str, Tensor]:
        """Return the embeddings of the frames of each data set, float32 [B, F, D].

        Those of frames that were not read are NaN.
        """
        encode = (self.compiled_encode if self.training else None) or self.encode
        pictures = [(b.frames, b.crops, b.colors) for b in batches.values()]
        embeddings = rearrange(encode(pictures), "(b g) d -> b g d", g=len(self._places))
        if len(self._places) < NUM_FRAMES:
            read = embeddings
            embeddings = read.new_full((len(read), NUM_FRAMES, read.shape[-1]), float("nan"))
            embeddings[:, self._places] = read
        parts = embeddings.split([len(batch) for batch in batches.values()])
        return dict(zip(batches, parts, strict=True))

    def encode(self, pictures: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Return the embeddings of stored frames, float32 [sum of B * G, D].

        pictures: frames, crops and colours of each data set. They pass the encoder together, so
                  that batch norm sees all of them.
        """
        inputs = [self.network_input(*of_set) for of_set in pictures]
        return self.encoder(inputs[0] if len(inputs) == 1 else torch.cat(inputs)).float()

    def network_input(self, frames: Tensor, crops: Tensor, colors: Tensor | None = None) -> Tensor:
        """Call `crops.network_input` for this encoder. All tensors are on its device."""
        p = self.preprocessing
        return network_input(frames, crops, p.image_size, p.mean, p.std, colors)


@torch.no_grad()
def embedding_health(embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return measures of a collapse of the embeddings of each data set, of all processes.

    embeddings: float32 [B, F, D] of each data set; NaN where a frame was not read

    embedding/spread: mean over the dimensions of their standard deviation over the images; 0 if all
        images look alike
    embedding/effective_rank: see `models.effective_rank`; of the first 1,024 images, which bounds
        its cost
    """
    health = {}
    for data_set, of_set in embeddings.items():
        is_read = ~of_set[0, :, 0].isnan()
        everyones, _ = gather_rows(rearrange(of_set[:, is_read], "b f d -> (b f) d"))
        label = labelled(data_set, "embedding")
        health[f"{label}/spread"] = everyones.std(0).mean()
        health[f"{label}/effective_rank"] = effective_rank(everyones[:1024])
    return health


def embedding_gradients(
    model: Pretrainer, embeddings: Mapping[str, Tensor], batches: MixedBatch
) -> dict[str, Tensor]:
    """How strongly each objective changes the embeddings: {"<objective>/embedding_gradient": norm}.

    The losses are weighted as in this step; the norm is that of `balance.pull`.

    embeddings: float32 [B, F, D] of each data set of `batches`
    This runs the heads once more, but not the encoder, and changes no gradient. It draws random
    numbers as a step does. All processes must call it.
    """
    norms = {}
    for data_set, batch in batches.items():
        of_set = embeddings[data_set].detach().requires_grad_()
        losses, _ = model.losses(data_set, of_set, batch)
        weights = model.weights(data_set)
        for name, loss in losses.items():
            label = labelled(data_set, name)
            strength = pull(weights[name] * loss, of_set, retain_graph=False)
            norms[f"{label}/embedding_gradient"] = strength
    return norms
