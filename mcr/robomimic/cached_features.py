"""Features instead of pictures: a robomimic data set whose pictures a frozen encoder has encoded.

A frozen encoder gives the same features of a picture in every epoch. `write_features` computes them
once and writes a data set in which `agentview_image` has become `agentview_image_features`, an
observation of the kind low_dim. In rollouts `OnlineFeatures` computes them with the same encoder.
Pictures cannot be augmented then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from mcr.data.hdf5 import Hdf5File
from mcr.errors import UserError
from mcr.features.extraction import encode_frames
from mcr.models.encoder import Encoder
from mcr.models.fingerprint import encoder_fingerprint
from mcr.models.loading import load_model
from mcr.runs.atomic import atomic_path

_BATCH = 64  # pictures


class OnlineFeatures:
    """Pictures of one observation -> their features, by the encoder that the data set names.

    weights:     what `load_model` reads
    fingerprint: `encoder_fingerprint` of the encoder whose features the data set holds
    keys:        names of the pictures
    Raises UserError if `weights` are another encoder.
    """

    def __init__(self, weights: str, fingerprint: str, keys: Sequence[str]):
        self.keys = tuple(keys)
        self._encoder = load_model(weights)
        if encoder_fingerprint(self._encoder) != fingerprint:
            raise UserError(
                f"{weights}: this is not the encoder whose features the data set holds; write the "
                "features anew"
            )

    def __call__(self, pictures: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures uint8 [H, W, 3] by key -> {name: float32 [D]}."""
        features = encode(self._encoder, [pictures[key] for key in self.keys])
        return {feature_name(key): row for key, row in zip(self.keys, features, strict=True)}


def write_features(
    source: str | Path, target: str | Path, weights: str, device: str | None = None
) -> list[str]:
    """Write robomimic's data set `source` to `target` with features instead of pictures.

    weights: what `load_model` reads
    returns: names of the features, for the config's list of low_dim observations
    raises:  UserError if `target` exists, or if `source` has no pictures
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise UserError(f"{target} exists: give another name or delete it")
    encoder = load_model(weights, device)
    with Hdf5File(source) as old:
        keys = sorted(old.cameras(old.episodes[0])) if old.episodes else []
        if not keys:
            raise UserError(f"{source}: there is no picture among its observations")
        with atomic_path(target) as partial, h5py.File(partial, "w") as new:
            old.copy(new, without=keys)
            for episode in old.episodes:
                for key in keys:
                    for group, features in _encode_both(encoder, old, episode, key).items():
                        new[f"data/{episode}/{group}/{feature_name(key)}"] = features
            _name_encoder(new["data"], weights, encoder, keys)
    return [feature_name(key) for key in keys]


def _name_encoder(data: h5py.Group, weights: str, encoder: Encoder, keys: Sequence[str]) -> None:
    """Write down which features a simulator that is made from this data set computes."""
    path = Path(weights).expanduser()
    env_args = json.loads(data.attrs["env_args"])
    env_args["env_kwargs"]["features"] = {
        # A path becomes absolute, because rollouts may run in another folder.
        "weights": str(path.resolve()) if path.exists() else weights,
        "fingerprint": encoder_fingerprint(encoder),
        "keys": list(keys),
    }
    data.attrs["env_args"] = json.dumps(env_args, indent=4)


def feature_name(key: str) -> str:
    """The observation that holds the features of the picture `key`."""
    return f"{key}_features"


def encode(encoder: Encoder, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] -> pooled features float32 [N, D].

    The network is the encoder itself, as in the training loop, and not the one with folded batch
    normalisation that `features.extraction` runs.
    """
    device = str(next(encoder.parameters()).device)
    with torch.inference_mode():
        batches = encode_frames(
            encoder.encode, encoder.preprocessing, pictures, _BATCH, device, together=True
        )
        return torch.cat([batch.float() for batch in batches]).numpy()


def _encode_both(encoder: Encoder, file: Hdf5File, episode: str, key: str) -> dict[str, np.ndarray]:
    """Features of a camera in obs and, if the file has it, in next_obs.

    The pictures in next_obs are usually those in obs, one step later; then each is encoded once.
    """
    pictures = file.read(episode, f"obs/{key}")
    if file.length(episode, f"next_obs/{key}") is None:
        return {"obs": encode(encoder, pictures)}
    following = file.read(episode, f"next_obs/{key}")
    if not np.array_equal(pictures[1:], following[:-1]):
        return {"obs": encode(encoder, pictures), "next_obs": encode(encoder, following)}
    features = encode(encoder, np.concatenate([pictures, following[-1:]]))
    return {"obs": features[:-1], "next_obs": features[1:]}
