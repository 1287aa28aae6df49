"""Policies on frozen features, all seeds of a table trained at once as one batched ensemble.

S policies are one network whose linear layers hold S matrices and are multiplied in one call: the
same numbers as S trainings, each with its own initial weights and its own order of samples, in
little more time than one. Called by `evaluation.success_rates`; one policy with its encoder is
trained by `behaviour_cloning`.

Shapes: S policies, B states, N samples, D features of all cameras side by side, P low-dimensional
signals, A action, C steps of a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mcr.errors import UserError, require_choice
from mcr.policies.heads import action_chunks, build_head

FORMAT = "mcr-policies-1"
FEATURE_NORMS = ("none", "batch_norm", "layer_norm")
_BATCH_NORM_MOMENTUM = 0.1


@dataclass
class PolicyConfig:
    """How a policy is made and trained; the defaults are the protocol of the benchmark.

    head:           "mlp", "gaussian", "gmm": see `heads`
    modes:          Gaussians of a gmm
    chunk:          actions predicted at a time, C
    hidden:         widths of the layers, ReLU between them (CortexBench: three of 256)
    feature_norm:   on features: "batch_norm" (R3M), "layer_norm", "none"; both with learned scales
    dropout:        share of features and of hidden units that are left out while training, drawn
                    anew for each sample; a few demonstrations are easily learned by heart
    standardise_actions: the network sees actions by their mean and deviation over the samples
    learning_rate:  Adam's
    batch_size:     the most samples in a batch; an epoch is cut into batches as equal as possible
    epochs:         passes over the samples
    """

    head: str = "mlp"
    modes: int = 5
    chunk: int = 1
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    feature_norm: str = "batch_norm"
    dropout: float = 0.0
    standardise_actions: bool = False
    learning_rate: float = 1e-3
    batch_size: int = 256
    epochs: int = 100

    def __post_init__(self) -> None:
        require_choice("feature_norm", self.feature_norm, FEATURE_NORMS)
        for name in ("chunk", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout} must lie in [0, 1)")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate={self.learning_rate} must be above 0")


# --------------------------------------------------------------------------- training


def train_policies(
    features: np.ndarray | Tensor,
    low_dim: np.ndarray | Tensor,
    actions: np.ndarray | Tensor,
    config: PolicyConfig,
    seeds: Sequence[int],
    lengths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> PolicyEnsemble:
    """One policy per seed, all trained on the same samples.

    features: float [N, D]; low_dim: float [N, P], P may be 0; actions: float [N, A].
    lengths: of the episodes one after the other; needed for chunks only.
    Raises UserError for arrays of different lengths, fewer than two samples, or values that are not
    finite.
    """
    named = {"features": features, "low_dim": low_dim, "actions": actions}
    arrays = {name: _as_float(name, values) for name, values in named.items()}
    _require_same_length(arrays)
    if lengths is None and config.chunk > 1:
        raise UserError(f"chunk={config.chunk} needs the lengths of the episodes")
    targets = action_chunks(
        arrays["actions"].numpy(), lengths or [len(arrays["actions"])], config.chunk
    )
    network = PolicyNetwork(config, [values.shape[1] for values in arrays.values()], seeds)
    network.take_statistics(arrays["low_dim"], arrays["actions"])
    inputs = (arrays["features"], arrays["low_dim"], torch.from_numpy(targets))
    samples = [values.to(device) for values in inputs]
    losses = _train(network.to(device), samples, config, seeds)
    return PolicyEnsemble(network.eval(), losses, seeds)


def _train(
    network: PolicyNetwork, samples: list[Tensor], config: PolicyConfig, seeds: Sequence[int]
) -> Tensor:
    """Mean training losses, [epochs, S]."""
    features, low_dim, targets = samples
    # The rates of Adam are elementwise, so one optimiser over the stacks is one for each policy.
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate, fused=True)
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    # no batch of one sample, which batch normalisation cannot take
    num_batches = min(-(-len(features) // config.batch_size), len(features) // 2)
    losses = torch.zeros(config.epochs, len(seeds), device=features.device)
    network.train()
    for epoch in range(config.epochs):
        shuffled = torch.stack([torch.randperm(len(features), generator=g) for g in orders])
        for rows in shuffled.to(features.device).tensor_split(num_batches, dim=1):  # each [S, B]
            loss = network.loss(features[rows], low_dim[rows], targets[rows])
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses[epoch] += loss.detach() * rows.shape[1] / len(features)
    return losses.cpu()


def _as_float(name: str, values: np.ndarray | Tensor) -> Tensor:
    tensor = torch.as_tensor(values).detach().cpu().float()
    if tensor.ndim != 2:
        raise UserError(f"{name} have the shape {tuple(tensor.shape)}: pass [samples, numbers]")
    if not tensor.isfinite().all():
        raise UserError(f"{name} hold NaN or infinity")
    return tensor


def _require_same_length(arrays: dict[str, Tensor]) -> None:
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"different numbers of samples: {lengths}")
    if lengths["actions"] < 2:
        raise UserError(f"{lengths['actions']} samples are too few to train on")


# --------------------------------------------------------------------------- the network


class PolicyNetwork(nn.Module):
    """S policies of the same shape: features and low-dimensional signals -> what their head reads.

    sizes: D, P, A; seeds: each policy's initial weights are a function of its seed alone.
    """

    low_dim_mean: Tensor
    low_dim_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, config: PolicyConfig, sizes: Sequence[int], seeds: Sequence[int]):
        super().__init__()
        self.config = config
        self.sizes = feature_dim, low_dim, action_dim = tuple(sizes)
        self.head = build_head(config.head, config.chunk * action_dim, config.modes)
        num_policies = len(seeds)
        self.norm = GroupedNorm(config.feature_norm, num_policies, feature_dim)
        widths = [feature_dim + low_dim, *config.hidden, self.head.width]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds]  # of dropout
        self.layers = nn.ModuleList(
            GroupedLinear(fan_in, fan_out, generators)
            for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True)
        )
        for name, size in (("low_dim", low_dim), ("action", action_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def take_statistics(self, low_dim: Tensor, actions: Tensor) -> None:
        """Standardise by these samples from now on: [N, P], [N, A]."""
        self.low_dim_mean, self.low_dim_std = mean_and_std(low_dim)
        if self.config.standardise_actions:
            self.action_mean, self.action_std = mean_and_std(actions)

    def forward(self, features: Tensor, low_dim: Tensor) -> Tensor:
        """[S, B, D], [S, B, P] -> [S, B, width of the head]."""
        low_dim = (low_dim - self.low_dim_mean) / self.low_dim_std
        values = torch.cat([self._dropout(self.norm(features)), low_dim], dim=-1)
        for layer in self.layers[:-1]:
            values = self._dropout(layer(values).relu())
        return self.layers[-1](values)

    def _dropout(self, values: Tensor) -> Tensor:
        """Of [S, B, D] while training, with each policy's own draws."""
        share = self.config.dropout
        if not self.training or not share:
            return values
        shape, device = values.shape[1:], values.device
        kept = [torch.rand(shape, generator=g).to(device) >= share for g in self._draws]
        return values * torch.stack(kept) / (1 - share)

    def loss(self, features: Tensor, low_dim: Tensor, targets: Tensor) -> Tensor:
        """[S, B, D], [S, B, P] and actions [S, B, C * A] -> each policy's mean loss, [S]."""
        mean, std = (each.repeat(self.config.chunk) for each in (self.action_mean, self.action_std))
        return self.head.loss(self(features, low_dim), (targets - mean) / std).mean(dim=-1)

    def actions(self, features: Tensor, low_dim: Tensor) -> Tensor:
        """[S, B, D], [S, B, P] -> [S, B, C, A]."""
        flat = self.head.action(self(features, low_dim))
        standard = rearrange(flat, "s b (c a) -> s b c a", c=self.config.chunk)
        return standard * self.action_std + self.action_mean


class GroupedLinear(nn.Module):
    """S linear layers side by side: [S, B, in] -> [S, B, out], initialised as torch's are."""

    def __init__(self, fan_in: int, fan_out: int, generators: Sequence[torch.Generator]):
        super().__init__()
        bound = fan_in**-0.5
        shapes = {"weight": (fan_in, fan_out), "bias": (1, fan_out)}
        for name, shape in shapes.items():
            draws = [torch.empty(shape).uniform_(-bound, bound, generator=g) for g in generators]
            self.register_parameter(name, nn.Parameter(torch.stack(draws)))

    def forward(self, values: Tensor) -> Tensor:
        return torch.baddbmm(self.get_parameter("bias"), values, self.get_parameter("weight"))


class GroupedNorm(nn.Module):
    """S normalisations of features with their own scales: [S, B, D] -> the same shape."""

    def __init__(self, kind: str, num_policies: int, width: int):
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.weight = nn.Parameter(torch.ones(num_policies, 1, width))
            self.bias = nn.Parameter(torch.zeros(num_policies, 1, width))
        if kind == "batch_norm":
            # batch normalisation is by feature, so that of all policies is one wide one
            self.statistics = nn.BatchNorm1d(
                num_policies * width, momentum=_BATCH_NORM_MOMENTUM, affine=False
            )

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "none":
            return features
        if self.kind == "layer_norm":
            normal = F.layer_norm(features, features.shape[-1:])
        else:
            wide = self.statistics(rearrange(features, "s b d -> b (s d)"))
            normal = rearrange(wide, "b (s d) -> s b d", s=len(features))
        return normal * self.weight + self.bias


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of the columns of [N, D]; a column that never moves is only shifted."""
    exact = values.double()
    mean = exact.mean(dim=0)
    std = (exact - mean).square().mean(dim=0).sqrt()
    return mean.float(), torch.where(std > 1e-6, std, 1.0).float()


# --------------------------------------------------------------------------- acting


class PolicyEnsemble:
    """Trained policies, asked together.

    seeds: of the policies, in order; losses: mean training loss of each epoch, float [epochs, S].
    """

    def __init__(self, network: PolicyNetwork, losses: Tensor, seeds: Sequence[int]):
        self.network = network
        self.losses = losses
        self.seeds = list(seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def act(self, policies: Any, features: Any, low_dim: Any) -> np.ndarray:
        """What each row's policy does now: int [B], float [B, D], [B, P] -> float32 [B, A].

        Of a chunk, the first action; all of it is what `act_chunk` returns.
        """
        return self.act_chunk(policies, features, low_dim)[:, 0]

    @torch.inference_mode()
    def act_chunk(self, policies: Any, features: Any, low_dim: Any) -> np.ndarray:
        """The next C actions of each row, float32 [B, C, A]: arguments as for `act`.

        Any policies in any order, in one call. Raises UserError for shapes that are not those of
        the training, and for a number that no policy has.
        """
        chosen, inputs = self._checked(policies, features, low_dim)
        # Row i becomes place[i] among the rows of its policy.
        place = np.zeros(len(chosen), np.int64)
        for policy in np.unique(chosen):
            place[chosen == policy] = np.arange((chosen == policy).sum())
        gathered = [
            values.new_zeros(len(self), int(place.max(initial=0)) + 1, values.shape[1])
            for values in inputs
        ]
        for table, values in zip(gathered, inputs, strict=True):
            table[chosen, place] = values
        return self.network.actions(*gathered)[chosen, place].cpu().numpy()

    def _checked(self, policies: Any, *inputs: Any) -> tuple[np.ndarray, list[Tensor]]:
        chosen = np.asarray(policies)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise UserError(f"policies {chosen.min()} .. {chosen.max()}: there are {len(self)}")
        device = self.network.low_dim_mean.device
        tensors = [torch.as_tensor(values).float().to(device) for values in inputs]
        expected = zip(("features", "low_dim"), tensors, self.network.sizes[:2], strict=True)
        for name, values, width in expected:
            if values.shape != (len(chosen), width):
                raise UserError(
                    f"{name} have the shape {list(values.shape)}, not [{len(chosen)}, {width}] as "
                    "in training: another encoder, camera or input size?"
                )
        return chosen, tensors

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all."""
        path = Path(path)
        content = {
            "format": FORMAT,
            "config": asdict(self.network.config),
            "sizes": list(self.network.sizes),
            "seeds": self.seeds,
            "losses": self.losses,
            "network": {name: tensor.cpu() for name, tensor in self.network.state_dict().items()},
        }
        partial = path.with_name(f"{path.name}.partial")
        torch.save(content, partial)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> PolicyEnsemble:
        """Read what `save` wrote, to the CPU. Raises UserError if it is anything else."""
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path}: holds no policies of the format {FORMAT!r}")
        config = PolicyConfig(**content["config"])
        network = PolicyNetwork(config, content["sizes"], content["seeds"])
        network.load_state_dict(content["network"])
        return cls(network.eval(), content["losses"], content["seeds"])
