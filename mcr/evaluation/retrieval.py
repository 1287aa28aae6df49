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
    """Recall at 1 and median rank, with each camera's frames as queries for every other camera's.

    Similarity is the cosine, as in time-contrastive networks (Sermanet et al. 2018) and image-text
    retrieval. Nothing is fitted. Only each camera's mean feature over the training side is
    subtracted first, because in raw features the difference between cameras outweighs all else.
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
    """The rank of candidate `answers[i]` for query i: 0 nearest, 1 farthest of all, float64.

    queries:    unit features [n, V, D]
    candidates: unit features [m, V, D]
    answers:    int64 [n], indices of candidates
    Returns n ranks for each ordered pair of cameras, concatenated. Candidates at equal distance
    share their mean rank, so constant features find nothing.
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
