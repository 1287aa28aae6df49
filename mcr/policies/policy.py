"""A policy: pictures and low-dimensional signals -> actions. Its file carries everything it needs.

`behaviour_cloning` trains it. `load_policy` reads it from the file of a run, encoder included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcr.errors import UserError
from mcr.models.backbones import BACKBONES
from mcr.models.encoder import Encoder
from mcr.models.layouts import Weights
from mcr.models.loading import build_encoder
from mcr.models.preprocessing import Preprocessing
from mcr.models.tensor_files import read_content
from mcr.policies.config import nest
from mcr.policies.network import ActionNetwork, PolicyConfig
from mcr.policies.observation_encoder import ObservationConfig, ObservationEncoder
from mcr.runs.atomic import atomic_path

FORMAT = "mcr-bc-2"
_FIRST_FORMAT = "mcr-bc-1"  # flat config, other names of tensors


class Policy(nn.Module):
    """Observations -> actions. A numbers of an action, C steps of a chunk.

    signals: names of the low-dimensional signals that `act` takes, in order
    """

    def __init__(
        self,
        observations: ObservationEncoder,
        action_dim: int,
        config: PolicyConfig,
        signals: Sequence[str] = (),
    ):
        super().__init__()
        self.signals = tuple(signals)
        self.observations = observations
        self.network = ActionNetwork(config, observations.out_dim, action_dim)

    def loss(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Vectors [B, out_dim] of `observations` and actions [B, C * A] -> losses [B]."""
        return self.network.loss(self.network.dropout(vectors), targets)

    def actions(self, vectors: Tensor) -> Tensor:
        """Vectors [B, out_dim] of `observations` -> [B, C, A]."""
        return self.network.actions(self.network.dropout(vectors))

    @torch.inference_mode()
    def act(self, pictures: Mapping[str, Any], low_dim: Any = None) -> np.ndarray:
        """Raw pictures [B, H, W, 3] by camera and signals [B, P] -> float32 [B, A].

        Of a chunk, the first action. The policy must be in eval mode, as `load_policy` returns it.
        """
        if low_dim is not None:
            device = self.network.standardise.mean.device
            low_dim = torch.as_tensor(low_dim).float().to(device)
        return self.actions(self.observations(pictures, low_dim))[:, 0].cpu().numpy()


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """The policy in a run's `policy.pt`, in eval mode.

    `policy.observations.cameras` and `policy.signals` name what it takes.
    Raises UserError if the file holds no policy.
    """
    path = Path(path)
    content = read_policy_file(path)
    tensors = content["policy"]
    observations = ObservationEncoder(
        ObservationConfig(**content["config"]["observations"]),
        content["cameras"],
        len(tensors["observations.low_dim.mean"]),
        _encoders(content, path),
    )
    policy = Policy(
        observations,
        len(tensors["network.standardise.mean"]),
        PolicyConfig(**content["config"]["policy"]),
        content["signals"],
    )
    policy.load_state_dict(tensors)
    return policy.eval().to(device)


def _encoders(content: dict[str, Any], path: Path) -> list[Encoder]:
    """The policy's encoders, with the weights that the file holds."""
    encoders = []
    for number, description in enumerate(content["encoders"]):
        backbone, preprocessing = Preprocessing.from_config(description)
        prefix = f"observations.encoders.{number}."
        if backbone not in BACKBONES:
            prefix += "network."  # timm's network is inside an Encoder
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in content["policy"].items()
            if name.startswith(prefix)
        }
        encoders.append(build_encoder(Weights(path, "policy", tensors, backbone, preprocessing)))
    return encoders


# --------------------------------------------------------------------------- the file


def write_policy_file(path: Path, policy: Policy, content: dict[str, Any]) -> None:
    """Write a policy atomically.

    content: what else the file holds: "config", as nested dictionaries, and the state of the run
    """
    observations = policy.observations
    about = {
        "format": FORMAT,
        "cameras": list(observations.cameras),
        "signals": list(policy.signals),
        "encoders": [
            encoder.preprocessing.encoder_config(encoder.backbone)
            for encoder in observations.all_encoders()
        ],
        "policy": policy.state_dict(),
    }
    # A file, because torch would write the temporary name of a path into it.
    with atomic_path(path) as partial, partial.open("wb") as file:
        torch.save(about | content, file)


def read_policy_file(path: Path) -> dict[str, Any]:
    """The content of a policy's file, in today's form. Raises UserError if it is anything else."""
    try:
        content = read_content(path)
    except UserError as error:
        raise UserError(f"{path}: unreadable policy ({error})") from error
    kind = content.get("format") if isinstance(content, dict) else None
    if kind == _FIRST_FORMAT:
        tensors = {_renamed(name): tensor for name, tensor in content["policy"].items()}
        return content | {"config": nest(content["config"]), "policy": tensors}
    if kind != FORMAT:
        raise UserError(f"{path}: holds no policy of the format {FORMAT!r}")
    return content


def _renamed(name: str) -> str:
    """Today's name of a tensor of the first format."""
    place, _, rest = name.partition(".")
    if place == "body":  # of dropout, linear, ReLU, dropout, linear, ...
        number, _, tensor = rest.partition(".")
        return f"network.layers.{(int(number) - 1) // 3}.{tensor}"
    return name.replace("observations.low_dim_", "observations.low_dim.").replace(
        "action_", "network.standardise."
    )
