"""Frozen features computed once: a data set's pictures -> features, and the same ones in rollouts.

A frozen encoder says the same of a picture in every epoch. `write_features` asks it once and
writes a data set in which `agentview_image` has become `agentview_image_features`, an observation
of the kind low_dim. Rollouts ask the same encoder through `OnlineFeatures`. Augmentation of
pictures is impossible then.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from mcr.errors import UserError
from mcr.features.cache import weights_fingerprint
from mcr.features.recordings import picture_shapes
from mcr.models.encoder import Encoder
from mcr.models.loading import load_model

_BATCH = 64  # pictures


class OnlineFeatures:
    """An observation's pictures -> its features, with the encoder that the data set names.

    weights: what `load_model` reads; keys: the pictures' names.
    Raises UserError if the encoder is another one than that whose features the data set holds.
    """

    def __init__(self, weights: str, fingerprint: str, keys: Sequence[str]):
        self.keys = tuple(keys)
        self._encoder = load_model(weights)
        if fingerprint_of(self._encoder) != fingerprint:
            raise UserError(
                f"{weights}: this is not the encoder whose features the data set holds; write the "
                "features anew"
            )

    def __call__(self, pictures: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures uint8 [H, W, 3] by key -> {name: float32 [D]}."""
        stacked = np.stack([pictures[key] for key in self.keys])
        features = encode(self._encoder, stacked)
        return {feature_name(key): row for key, row in zip(self.keys, features, strict=True)}


def write_features(
    source: str | Path, target: str | Path, weights: str, device: str | None = None
) -> list[str]:
    """Write robomimic data set `source` to `target` with features in the place of pictures.

    weights: what `load_model` reads. Pictures are all observations uint8 [T, H, W, 3].
    returns: the features' names, for the config's list of low_dim observations.
    raises: UserError when `target` exists, or `source` has no pictures.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise UserError(f"{target} exists: give another name or delete it")
    encoder = load_model(weights, device)
    partial = target.with_name(f".{target.name}.partial")
    with h5py.File(source, "r") as old:
        keys = _picture_keys(old)
        if not keys:
            raise UserError(f"{source}: there is no picture among its observations")
        with h5py.File(partial, "w") as new:
            _copy_without_pictures(old, new, keys)
            for name, demo in old["data"].items():
                for key in keys:
                    for group, features in _encode_both(encoder, demo, key).items():
                        new[f"data/{name}/{group}/{feature_name(key)}"] = features
            _name_encoder(new["data"], weights, encoder, keys)
    os.replace(partial, target)
    return [feature_name(key) for key in keys]


def _name_encoder(data: h5py.Group, weights: str, encoder: Encoder, keys: Sequence[str]) -> None:
    """Tell simulators made from this data set which features to compute."""
    path = Path(weights).expanduser()
    env_args = json.loads(data.attrs["env_args"])
    env_args["env_kwargs"]["features"] = {
        # absolute if it is a path, because rollouts may run in another folder
        "weights": str(path.resolve()) if path.exists() else weights,
        "fingerprint": fingerprint_of(encoder),
        "keys": list(keys),
    }
    data.attrs["env_args"] = json.dumps(env_args, indent=4)


def feature_name(key: str) -> str:
    """The observation that holds the features of the picture `key`."""
    return f"{key}_features"


def encode(encoder: Encoder, pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] -> pooled features float32 [N, D]."""
    with torch.inference_mode():
        batches = torch.from_numpy(np.ascontiguousarray(pictures)).split(_BATCH)
        return torch.cat([encoder(batch).float().cpu() for batch in batches]).numpy()


def fingerprint_of(encoder: Encoder) -> str:
    """Equal for equal weights and preprocessing."""
    seen = json.dumps(encoder.preprocessing.encoder_config(encoder.backbone), sort_keys=True)
    return hashlib.sha256(f"{weights_fingerprint(encoder)} {seen}".encode()).hexdigest()


def _encode_both(encoder: Encoder, demo: h5py.Group, key: str) -> dict[str, np.ndarray]:
    """Features by group, obs and, if it is there, next_obs: mostly the same pictures, one later."""
    pictures = demo["obs"][key][:]
    if "next_obs" not in demo:
        return {"obs": encode(encoder, pictures)}
    following = demo["next_obs"][key][:]
    if not np.array_equal(pictures[1:], following[:-1]):
        return {"obs": encode(encoder, pictures), "next_obs": encode(encoder, following)}
    features = encode(encoder, np.concatenate([pictures, following[-1:]]))
    return {"obs": features[:-1], "next_obs": features[1:]}


def _picture_keys(data_set: h5py.File) -> list[str]:
    observations = next(iter(data_set["data"].values()))["obs"]
    return sorted(picture_shapes(observations))


def _copy_without_pictures(old: h5py.File, new: h5py.File, keys: Sequence[str]) -> None:
    """Copy everything, attributes included, but the observations `keys`."""

    def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group):
            copied = new.require_group(name)
        elif name.split("/")[-1] in keys:
            return
        else:
            copied = new.create_dataset(name, data=item[()])
        copied.attrs.update(item.attrs)

    old.visititems(copy)
