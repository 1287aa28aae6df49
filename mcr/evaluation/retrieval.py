"""Retrieval: does a frame find the frame that another camera took at the same step?

Called by `offline`.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from mcr.evaluation.intervals import bootstrap
from mcr.evaluation.recorded_frames import Frames


def retrieval_scores(
    training: Frames, held_out: Frames, rng: np.random.Generator
) -> dict[str, tuple[float, float, float]]:
    """Recall at 1 and median rank, each camera's frames asking for every other's.

    By cosine, as in time-contrastive networks (Sermanet et al. 2018) and image-text retrieval:
    nothing is fitted, so it judges features as they are. Only each camera's mean over the training
    side is taken off first, since a camera's own look would drown all else in raw features.
    """
    features = held_out.features - training.features.mean(axis=0)
    features = features / np.linalg.norm(features, axis=-1, keepdims=True).clip(1e-12)
    near, far = [], []  # per episode
    for episode in held_out.episodes:
        own = np.arange(episode.stop - episode.start)
        near.append(camera_ranks(features[episode], features[episode], own))
        far.append(camera_ranks(features[episode], features, own + episode.start))
    scores = {}
    for name, ranks in (("episode", near), ("all", far)):
        scores[f"retrieval_{name}"] = bootstrap(
            lambda picks, ranks=ranks: float(np.mean(_pooled(ranks, picks) == 0)), rng, len(ranks)
        )
        scores[f"rank_{name}"] = bootstrap(
            lambda picks, ranks=ranks: float(np.median(_pooled(ranks, picks))), rng, len(ranks)
        )
    return scores


def camera_ranks(queries: np.ndarray, candidates: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Where candidate `answers[i]` stands for query i: 0 nearest, 1 farthest of all, float64.

    Over all ordered pairs of cameras, one after the other. queries: unit features [n, V, D];
    candidates: [m, V, D]; answers: int64 [n]. Of equally near ones each has the middle rank, so
    that features that are all alike find nothing.
    """
    ranks = []
    for asking, asked in permutations(range(queries.shape[1]), 2):
        similarity = queries[:, asking] @ candidates[:, asked].T
        right = np.take_along_axis(similarity, answers[:, None], axis=1)
        ties = (similarity == right).sum(axis=1) - 1
        nearer = (similarity > right).sum(axis=1) + ties / 2
        ranks.append(nearer / (len(candidates) - 1))
    return np.concatenate(ranks)


def _pooled(ranks: list[np.ndarray], episodes: np.ndarray) -> np.ndarray:
    return np.concatenate([ranks[episode] for episode in episodes])
