"""Feature health: do features differ between pictures, and in how many directions?

Called by `offline`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange

from mcr.evaluation.intervals import jackknife
from mcr.evaluation.probes import session_folds
from mcr.evaluation.recorded_frames import Frames
from mcr.models.effective_rank import effective_rank

_NUM_PICTURES = 2048  # evenly spaced; bounds the cost of the effective rank
_DEAD = 1e-6  # standard deviation of a dead unit, as a share of the largest one


def health_scores(training: Frames, held_out: Frames) -> dict[str, tuple[float, float, float]]:
    """Scores of the pictures of both sides and all cameras, since nothing is fitted."""
    num_cameras = held_out.features.shape[1]
    features = rearrange(
        np.concatenate([training.features, held_out.features]), "n v d -> (n v) d"
    ).astype(np.float64)
    sessions = np.concatenate([training.sessions, held_out.sessions]).repeat(num_cameras)
    some = np.linspace(0, len(features) - 1, min(_NUM_PICTURES, len(features))).astype(int)
    features, folds = features[some], session_folds(sessions[some])
    measures: dict[str, Callable[[np.ndarray], float]] = {
        "effective_rank": lambda x: effective_rank(torch.from_numpy(x)).item(),
        "dead_units": dead_share,
        "feature_std": lambda x: float(x.std(axis=0).mean()),
        "feature_cosine": mean_cosine,
    }
    scores = {}
    for name, measure in measures.items():

        def of_some(kept: np.ndarray, measure: Callable = measure) -> float:
            return measure(features[kept])

        scores[name] = jackknife(of_some, folds)
    return scores


def dead_share(features: np.ndarray) -> float:
    """The share of units of features [n, D] that are constant, compared with the liveliest."""
    std = features.std(axis=0)
    return float(np.mean(std <= _DEAD * std.max()))


def mean_cosine(features: np.ndarray) -> float:
    """The mean cosine of two different rows of features [n, D]."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    count = len(units)
    return float(((units.sum(axis=0) ** 2).sum() - (units**2).sum()) / (count * (count - 1)))
