"""Features instead of pictures: a LeRobotDataset whose cameras give features of a cache.

A frozen encoder gives the same features of a picture in every epoch. `mcr features` computes them
once. A policy with `cached_features` is then trained on a `CachedFeatures`: no video is decoded and
no encoder runs. In rollouts the policy computes features with its encoder. Pictures cannot be
augmented then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcr.data.index import open_index
from mcr.data.schema import names_of
from mcr.errors import UserError
from mcr.features.cache import FeatureCache
from mcr.lerobot.compatibility import require_lerobot
from mcr.lerobot.options import EncoderOptions
from mcr.models.loading import load_model

require_lerobot()
from lerobot.datasets import factory  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata  # noqa: E402
from lerobot.datasets.utils import hf_transform_to_torch  # noqa: E402

_make_dataset = factory.make_dataset


class CachedFeatures(LeRobotDataset):
    """A LeRobotDataset; takes the place of one, in LeRobot's trainer and elsewhere.

    features: folder of the cache, or the opened cache
    The other arguments are LeRobotDataset's. It opens no video.

    Items are those of LeRobotDataset, but under the key of each camera lie features, float32
    [D, h, w], or [n, D, h, w] if `delta_timestamps` asks for n steps.
    Raises UserError if the cache was computed from other data or lacks a camera or an episode.
    """

    hf_dataset: Any

    def __init__(self, *arguments: Any, features: str | Path | FeatureCache, **kwargs: Any):
        super().__init__(*arguments, **kwargs)
        self.cache = features if isinstance(features, FeatureCache) else FeatureCache(features)
        _require_same_data(self.cache, self.root)
        self._cameras = _cameras(self.cache, self.meta.camera_keys)
        rows = {name: row for row, name in enumerate(self.cache.episodes["name"])}
        self._rows = [_row(self.cache, rows, i) for i in range(self.meta.total_episodes)]
        self.hf_dataset = self.hf_dataset.remove_columns(self.meta.image_keys)
        self.hf_dataset.set_transform(hf_transform_to_torch)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = super().__getitem__(idx)
        episode, step = int(item["episode_index"]), int(item["frame_index"])
        return item | {
            key: self._features(camera, key, episode, step) for key, camera in self._cameras.items()
        }

    def _features(self, camera: str, key: str, episode: int, step: int) -> Tensor:
        """Of a step, or of the steps around it that `delta_timestamps` asks for, within bounds."""
        row = self._rows[episode]
        deltas = np.asarray((self.delta_indices or {}).get(key, [0]))
        steps = (step + deltas).clip(0, int(self.cache.episodes["length"].iloc[row]) - 1)
        features = torch.from_numpy(self.cache.features(row, camera, steps.tolist()))
        return features.squeeze(0)  # LeRobot, too, drops the dimension of a single step

    def _get_query_timestamps(self, *arguments: Any, **kwargs: Any) -> dict[str, list[float]]:
        """LeRobot's: the frames of videos to decode. None are."""
        return {}

    def _query_hf_dataset(self, query_indices: dict[str, list[int]]) -> dict[str, Tensor]:
        """LeRobot's: steps around a step, without pictures."""
        wanted = {key: steps for key, steps in query_indices.items() if key not in self._cameras}
        return super()._query_hf_dataset(wanted)


def make_dataset(config: Any) -> Any:
    """LeRobot's `make_dataset`, or a `CachedFeatures` for a policy of ours that asks for one.

    config: LeRobot's TrainPipelineConfig
    Raises UserError if the features are those of another encoder or of other data, or if pictures
    are to be augmented.
    """
    policy, data = config.policy, config.dataset
    if not (isinstance(policy, EncoderOptions) and policy.cached_features):
        return _make_dataset(config)
    if data.image_transforms.enable or data.streaming:
        raise UserError(
            f"policy.cached_features={policy.cached_features}: features are not pictures; leave "
            "out dataset.image_transforms.enable and dataset.streaming"
        )
    cache = FeatureCache(policy.cached_features, load_model(policy.vision_backbone))
    meta = LeRobotDatasetMetadata(data.repo_id, root=data.root, revision=data.revision)
    return CachedFeatures(
        data.repo_id,
        features=cache,
        root=data.root,
        episodes=data.episodes,
        delta_timestamps=factory.resolve_delta_timestamps(policy, meta),
        revision=data.revision,
        tolerance_s=config.tolerance_s,
    )


def _require_same_data(cache: FeatureCache, root: Path) -> None:
    """Raise UserError unless the cache holds spatial features of the data set in `root`."""
    if cache.description["output"] != "spatial":
        raise UserError(
            f"{cache.path}: holds pooled features, but policies of LeRobot take maps: run "
            "mcr features with --output spatial"
        )
    FeatureCache(cache.path, data_fingerprint=open_index(root).fingerprint)


def _cameras(cache: FeatureCache, keys: list[str]) -> dict[str, str]:
    """The camera of the cache for each key of LeRobot."""
    names = names_of(keys)
    if missing := [key for key, name in names.items() if name not in cache.cameras]:
        raise UserError(
            f"{cache.path}: has no features of {', '.join(missing)}, only of "
            f"{', '.join(cache.cameras)}; compute those of all cameras"
        )
    return names


def _row(cache: FeatureCache, rows: dict[str, int], episode: int) -> int:
    name = f"episode_{episode:06d}"
    if name not in rows:
        raise UserError(
            f"{cache.path}: has no features of {name}; `mcr inspect` says why the data set's index "
            "left it out"
        )
    return rows[name]
