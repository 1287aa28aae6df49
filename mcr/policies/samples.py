"""Samples: the steps that behaviour cloning learns from, with cached features or with pictures.

Features of a frozen encoder are computed once where that is possible. Otherwise pictures go through
the encoder in every step, and the reason is printed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcr.features.extraction import FeatureConfig, extract_features
from mcr.models.backbones import BACKBONES
from mcr.models.layouts import CHECKPOINT_FORMAT
from mcr.policies.config import Config
from mcr.policies.demonstrations import Demonstrations
from mcr.policies.heads import action_chunks
from mcr.policies.observation_encoder import ObservationEncoder
from mcr.runs.atomic import atomic_path

_ENCODER = "encoder.pt"  # in the run's folder: an encoder that no other file holds


@dataclass(frozen=True)
class Samples:
    """N steps, with either features or pictures.

    low_dim:  float32 [N, P]
    targets:  float32 [N, C * A]
    features: from a cache, [N, V, D] or [N, V, D, h, w]
    pictures: uint8 [N, H, W, 3] by camera
    """

    low_dim: Tensor
    targets: Tensor
    features: np.ndarray | None = None
    pictures: Mapping[str, np.ndarray] | None = None

    def batch(self, observations: ObservationEncoder, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Some steps: vectors of `observations`, [B, out_dim], and targets, [B, C * A]."""
        device = observations.low_dim.mean.device
        low_dim, targets = (values[rows].to(device) for values in (self.low_dim, self.targets))
        if self.features is not None:
            features = torch.from_numpy(self.features[rows]).to(device)
            return observations.from_features(features, low_dim), targets
        assert self.pictures is not None
        pictures = {name: torch.from_numpy(all_[rows]) for name, all_ in self.pictures.items()}
        return observations(pictures, low_dim), targets


def batches(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut rows into batches of nearly equal size; none has one row if there are more."""
    count = min(-(-len(rows) // batch_size), len(rows) // 2)
    return np.array_split(rows, max(1, count))


def open_samples(
    config: Config,
    demonstrations: Demonstrations,
    observations: ObservationEncoder,
    scratch: Path,
    learns: bool,
) -> Samples:
    """The steps of all demonstrations.

    scratch: a folder for decoded pictures
    learns:  the encoder learns, so its features cannot be cached
    """
    chunks = action_chunks(
        demonstrations.actions, demonstrations.recordings.lengths, config.policy.chunk
    )
    numbers = torch.from_numpy(demonstrations.low_dim), torch.from_numpy(chunks)
    reason = "it learns" if learns else _why_not_cached(config, observations)
    if not reason:
        return Samples(*numbers, features=_cached_features(config, demonstrations, observations))
    print(f"encoder in the loop: {reason}")
    pictures = {
        camera: demonstrations.pictures(camera, scratch / f"{number}.npy")
        for number, camera in enumerate(demonstrations.cameras)
    }
    return Samples(*numbers, pictures=pictures)


def _why_not_cached(config: Config, observations: ObservationEncoder) -> str:
    """Why features cannot be cached; "" if they can."""
    sees, backbone = config.observations, observations.encoder.backbone
    reasons = {
        "it learns": not sees.freeze_encoder,
        "cache_features=False": not config.cache_features,
        "crops differ from epoch to epoch": sees.crops > 0,
        "each camera has its own random one": not (sees.share_encoder or sees.pretrained_encoder),
        f"{backbone} with changed preprocessing": not (
            _is_loadable(config) or backbone in BACKBONES
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _is_loadable(config: Config) -> bool:
    """Whether `load_model` gives the encoder of the run as it is."""
    sees = config.observations
    return sees.pretrained_encoder and not sees.image_size and sees.normalisation == "own"


def _cached_features(
    config: Config, demonstrations: Demonstrations, observations: ObservationEncoder
) -> np.ndarray:
    folder, encoder = Path(config.run_dir), observations.encoder
    if _is_loadable(config):
        source = config.observations.encoder or f"torchvision:{encoder.backbone}"
    else:
        source = str(folder / _ENCODER)
        content = {
            "format": CHECKPOINT_FORMAT,
            "encoder": encoder.state_dict(),
            "encoder_config": encoder.preprocessing.encoder_config(encoder.backbone),
        }
        with atomic_path(folder / _ENCODER) as partial, partial.open("wb") as file:
            torch.save(content, file)
    out = Path(config.feature_cache or folder / "features")
    options = FeatureConfig(
        output="pooled" if config.observations.pooling == "pooled" else "spatial",
        cameras=demonstrations.cameras,
        device=str(next(encoder.parameters()).device),
        workers=config.workers,
    )
    began = time.perf_counter()
    index = demonstrations.recordings.index  # as it was opened: its place, its schema
    data = config.demonstrations.data
    array = extract_features(source, data, out, options, index.path, index.schema).array
    print(f"features of {len(array)} steps in {out} ({time.perf_counter() - began:.1f} s)")
    return array
