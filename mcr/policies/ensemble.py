"""Ensembles: policies on frozen features, for all seeds of a table, trained as one batched network.

The linear layers of S policies hold S matrices, which one call multiplies. The results are those of
S separate trainings, each with its own initial weights and its own order of samples, in little more
time than one takes. Called by `evaluation.success_rates`. `behaviour_cloning` trains a single
policy together with its encoder.

Policies get either pooled features or feature maps. Those that get maps have an attention over each
camera's tokens in front of the norm, which learns with them.

Shapes: S policies, B states, N samples, D features of all cameras side by side, P low-dimensional
signals, A numbers of an action, C steps of a chunk. Of maps: V cameras, K features, h w places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mcr.errors import UserError
from mcr.models.tensor_files import named_error, read_content
from mcr.policies.heads import action_chunks
from mcr.policies.network import (
    FEATURE_NORMS,
    MOST_STD,
    ActionNetwork,
    PolicyConfig,
    Standardise,
)
from mcr.policies.pooling import TokenAttention
from mcr.runs.atomic import atomic_path
from mcr.runs.ranges import choice

FORMAT = "mcr-policies-2"
_FIRST_FORMAT = "mcr-policies-1"
_BATCH_NORM_MOMENTUM = 0.1
_NUM_QUERIES = 4  # of the attention over a camera's tokens
_STEPS_TO_FIT = 256  # whose maps give the mean and the standard deviation of each feature


@dataclass
class EnsembleConfig(PolicyConfig):
    """How the policies of an ensemble are built and trained; the defaults are the benchmark's.

    feature_norm: of features: "batch_norm" (as R3M), "layer_norm" or "none"; the first two have
                  learned scales
    """

    standardise_actions: bool = False
    feature_norm: Annotated[str, choice(FEATURE_NORMS)] = "batch_norm"


# --------------------------------------------------------------------------- training


def train_policies(
    features: np.ndarray | Tensor,
    low_dim: np.ndarray | Tensor,
    actions: np.ndarray | Tensor,
    config: EnsembleConfig,
    seeds: Sequence[int],
    lengths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> PolicyEnsemble:
    """Train one policy per seed, all on the same samples.

    features: float [N, D], or maps [N, V, K, h, w], float32 or float16
    low_dim:  float [N, P]; P may be 0
    actions:  float [N, A]
    lengths:  numbers of steps of the episodes, in order; only chunks need them
    Raises UserError for arrays of different lengths, fewer than two samples, or values that are not
    finite.
    """
    named = {"features": features, "low_dim": low_dim, "actions": actions}
    arrays = {name: _checked_array(name, values) for name, values in named.items()}
    _require_same_length(arrays)
    if lengths is None and config.chunk > 1:
        raise UserError(f"chunk={config.chunk} needs the lengths of the episodes")
    targets = action_chunks(
        arrays["actions"].numpy(), lengths or [len(arrays["actions"])], config.chunk
    )
    maps = arrays["features"]
    feature_size: int | list[int] = maps.shape[1] if maps.ndim == 2 else list(maps.shape[1:])
    sizes = [feature_size, arrays["low_dim"].shape[1], arrays["actions"].shape[1]]
    network = EnsembleNetwork(config, sizes, seeds)
    network.fit_maps(maps)
    network.low_dim.fit(arrays["low_dim"])
    if config.standardise_actions:
        network.network.standardise.fit(arrays["actions"])
    inputs = (network.standardised(maps), arrays["low_dim"], torch.from_numpy(targets))
    samples = [values.to(device) for values in inputs]
    losses = _train(network.to(device), samples, config, seeds)
    return PolicyEnsemble(network.eval(), losses, seeds)


def _train(
    network: EnsembleNetwork, samples: list[Tensor], config: EnsembleConfig, seeds: Sequence[int]
) -> Tensor:
    """Mean training losses, [epochs, S]."""
    features, low_dim, targets = samples
    # Adam scales each parameter by itself, so one optimiser for all policies updates each policy
    # as an optimiser of its own would.
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate, fused=True)
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    # Batch normalisation cannot take a batch of one sample.
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


def _checked_array(name: str, values: np.ndarray | Tensor) -> Tensor:
    """float32 [N, numbers]; maps keep their dtype, because they are large."""
    tensor = torch.as_tensor(values).detach().cpu()
    if name == "features" and tensor.ndim == 5:
        tensor = tensor if tensor.is_floating_point() else tensor.float()
    elif tensor.ndim == 2:
        tensor = tensor.float()
    else:
        maps = ", or maps [samples, cameras, features, h, w]" if name == "features" else ""
        shape = tuple(tensor.shape)
        raise UserError(f"{name} have the shape {shape}: pass [samples, numbers]{maps}")
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


class EnsembleNetwork(nn.Module):
    """S policies of the same shape: features and low-dimensional signals -> actions.

    sizes: D, P, A; for maps [V, K, h, w], P, A
    seeds: the initial weights of each policy depend on its seed alone
    """

    def __init__(
        self,
        config: EnsembleConfig,
        sizes: Sequence[int | Sequence[int]],
        seeds: Sequence[int],
    ):
        super().__init__()
        self.config = config
        self.sizes = list(sizes)
        feature_shape, (low_dim,), (action_dim,) = self.shapes = [_shape(size) for size in sizes]
        weights = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.pools: nn.ModuleList | None = None
        self.maps: Standardise | None = None
        feature_dim = feature_shape[0]
        if len(feature_shape) > 1:
            pools = [CameraPools(feature_shape, generator) for generator in weights]
            self.pools, feature_dim = nn.ModuleList(pools), pools[0].out_dim
            self.maps = Standardise(feature_shape[0] * feature_shape[1])
        self.norm = GroupedNorm(config.feature_norm, len(seeds), feature_dim)
        self.low_dim = Standardise(low_dim)
        self.network = ActionNetwork(
            config,
            feature_dim + low_dim,
            action_dim,
            linear=lambda fan_in, fan_out: GroupedLinear(fan_in, fan_out, weights),
            dropout=GroupedDropout(config.dropout, seeds),
        )

    def loss(self, features: Tensor, low_dim: Tensor, targets: Tensor) -> Tensor:
        """[S, B, D], [S, B, P] and actions [S, B, C * A] -> each policy's mean loss, [S].

        In the place of [S, B, D] there may be standardised maps, [S, B, V, K, h, w].
        """
        return self.network.loss(self._vectors(features, low_dim), targets).mean(dim=-1)

    def actions(self, features: Tensor, low_dim: Tensor) -> Tensor:
        """[S, B, D], [S, B, P] -> [S, B, C, A]."""
        return self.network.actions(self._vectors(features, low_dim))

    def _vectors(self, features: Tensor, low_dim: Tensor) -> Tensor:
        """What the layers get: [S, B, D + P]. Dropout leaves out features, never signals."""
        if self.pools:
            each = zip(self.pools, features.float(), strict=True)
            features = torch.stack([pools(maps) for pools, maps in each])
        features = self.network.dropout(self.norm(features))
        return torch.cat([features, self.low_dim(low_dim)], dim=-1)

    def fit_maps(self, maps: Tensor) -> None:
        """Standardise each feature of each camera from now on; vectors are left as they are."""
        if self.maps:
            some = maps[:: -(-len(maps) // _STEPS_TO_FIT)].float()
            self.maps.fit(rearrange(some, "n v k h w -> (n h w) (v k)"))

    def standardised(self, features: Tensor) -> Tensor:
        """Maps [N, V, K, h, w] as `loss` and `actions` take them; vectors as they are."""
        if self.maps is None:
            return features
        shape = (1, *features.shape[1:3], 1, 1)
        mean, std = self.maps.mean.view(shape), self.maps.std.view(shape)
        parts = (
            ((part.float() - mean) / std).clamp(-MOST_STD, MOST_STD).to(part.dtype)
            for part in features.split(_STEPS_TO_FIT)
        )
        return torch.cat(list(parts))


def _shape(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(size)


class CameraPools(nn.Module):
    """One policy's attention over the tokens of each camera: [B, V, K, h, w] -> [B, out_dim].

    shape: V, K, h, w
    """

    def __init__(self, shape: Sequence[int], generator: torch.Generator):
        super().__init__()
        cameras, width, height, columns = shape
        self.of_cameras = nn.ModuleList(
            TokenAttention(width, _NUM_QUERIES, (height, columns), generator)
            for _ in range(cameras)
        )
        self.out_dim = cameras * _NUM_QUERIES * (width + 2)  # the expected place has two numbers

    def forward(self, maps: Tensor) -> Tensor:
        each = zip(self.of_cameras, maps.unbind(dim=1), strict=True)
        return torch.cat([pool(of_camera) for pool, of_camera in each], dim=-1)


class GroupedDropout(nn.Module):
    """Dropout on [S, B, D] in training, with random numbers of each policy's own.

    share: of the values that are set to 0; the others are scaled, so that the mean is kept
    """

    def __init__(self, share: float, seeds: Sequence[int]):
        super().__init__()
        self.share = share
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds]

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.share:
            return values
        shape, device = values.shape[1:], values.device
        kept = [torch.rand(shape, generator=g).to(device) >= self.share for g in self._draws]
        return values * torch.stack(kept) / (1 - self.share)


class GroupedLinear(nn.Module):
    """S linear layers side by side: [S, B, in] -> [S, B, out]; initial weights are as torch's."""

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
            # Batch normalisation treats each feature by itself, so one wide layer serves all.
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
            wide = wide.clamp(-MOST_STD, MOST_STD)
            normal = rearrange(wide, "b (s d) -> s b d", s=len(features))
        return normal * self.weight + self.bias


# --------------------------------------------------------------------------- acting


class PolicyEnsemble:
    """Trained policies that act together.

    losses: mean training loss of each epoch, float [epochs, S]
    seeds:  of the policies, in order
    """

    def __init__(self, network: EnsembleNetwork, losses: Tensor, seeds: Sequence[int]):
        self.network = network
        self.losses = losses
        self.seeds = list(seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def act(self, policies: Any, features: Any, low_dim: Any) -> np.ndarray:
        """Each row's next action by its policy: int [B], float [B, D], [B, P] -> float32 [B, A].

        Policies that were trained on maps get [B, V, K, h, w] in the place of [B, D].
        Of a chunk it is the first action; `act_chunk` returns all of them.
        """
        return self.act_chunk(policies, features, low_dim)[:, 0]

    @torch.inference_mode()
    def act_chunk(self, policies: Any, features: Any, low_dim: Any) -> np.ndarray:
        """The next C actions of each row, float32 [B, C, A]. The arguments are those of `act`.

        Rows may ask any policies in any order.
        Raises UserError for shapes other than in training, and for a policy that does not exist.
        """
        chosen, inputs = self._checked(policies, features, low_dim)
        # Row i becomes row place[i] of its policy's batch.
        place = np.zeros(len(chosen), np.int64)
        for policy in np.unique(chosen):
            place[chosen == policy] = np.arange((chosen == policy).sum())
        gathered = [
            values.new_zeros(len(self), int(place.max(initial=0)) + 1, *values.shape[1:])
            for values in inputs
        ]
        for table, values in zip(gathered, inputs, strict=True):
            table[chosen, place] = values
        return self.network.actions(*gathered)[chosen, place].cpu().numpy()

    def _checked(self, policies: Any, *inputs: Any) -> tuple[np.ndarray, list[Tensor]]:
        chosen = np.asarray(policies)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise UserError(f"policies {chosen.min()} .. {chosen.max()}: there are {len(self)}")
        device = self.network.low_dim.mean.device
        tensors = [torch.as_tensor(values).float().to(device) for values in inputs]
        expected = zip(("features", "low_dim"), tensors, self.network.shapes[:2], strict=True)
        for name, values, shape in expected:
            if values.shape != (len(chosen), *shape):
                raise UserError(
                    f"{name} have the shape {list(values.shape)}, not "
                    f"{[len(chosen), *shape]} as in training: another encoder, camera or input "
                    "size?"
                )
        features, low_dim = tensors
        return chosen, [self.network.standardised(features), low_dim]

    def save(self, path: str | Path) -> None:
        """Write one file atomically."""
        content = {
            "format": FORMAT,
            "config": asdict(self.network.config),
            "sizes": self.network.sizes,
            "seeds": self.seeds,
            "losses": self.losses,
            "network": {name: tensor.cpu() for name, tensor in self.network.state_dict().items()},
        }
        # A file, because torch would write the temporary name of a path into it.
        with atomic_path(Path(path)) as partial, partial.open("wb") as file:
            torch.save(content, file)

    @classmethod
    def load(cls, path: str | Path) -> PolicyEnsemble:
        """Read what `save` wrote, to the CPU. Raises UserError if the file is anything else."""
        try:
            content = read_content(Path(path))
        except UserError as error:
            raise named_error(Path(path), error) from error
        kind = content.get("format") if isinstance(content, dict) else None
        if kind not in (FORMAT, _FIRST_FORMAT):
            raise UserError(f"{path}: holds no policies of the format {FORMAT!r}")
        network = EnsembleNetwork(
            EnsembleConfig(**content["config"]), content["sizes"], content["seeds"]
        )
        network.load_state_dict({_renamed(key): t for key, t in content["network"].items()})
        return cls(network.eval(), content["losses"], content["seeds"])


def _renamed(key: str) -> str:
    """Today's name of a tensor that may have the name of the first format."""
    for first, now in (
        ("layers.", "network.layers."),
        ("low_dim_", "low_dim."),
        ("action_", "network.standardise."),
    ):
        if key.startswith(first):
            return key.replace(first, now, 1)
    return key
