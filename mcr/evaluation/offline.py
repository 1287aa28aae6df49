"""The offline suite: what frozen features say on recorded data, without a simulator.

    probes           state, action, time to the end, by ridge regression and by a small network
    temporal order   do predicted times put an episode's frames in their order? (Kendall's tau)
    retrieval        does a frame find the frame that another camera took at the same step?
    feature health   do features differ between pictures, and in how many directions?

Probes are fitted on training sessions; all but feature health is judged on whole held-out recording
sessions. Each frame goes through the encoder once, for all scores. Called by scripts/evaluate.py.
It is no substitute for success rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import torch
from einops import rearrange
from scipy.stats import kendalltau, t

from mcr.data.index import Index
from mcr.data.selection import SelectionConfig, select_episodes, split_sessions
from mcr.data.spaces import action_space, signal_space
from mcr.errors import UserError
from mcr.evaluation.probes import (
    choose_steps,
    embed_steps,
    mlp_predictions,
    ridge_errors,
    ridge_predictions,
    session_folds,
    varying,
)
from mcr.models.effective_rank import effective_rank
from mcr.models.encoder import Encoder

SCORES = {
    "state_ridge": "R² of the state by ridge regression: 1 perfect, 0 blind",
    "state_mlp": "the same by a network with one hidden layer",
    "action_ridge": "R² of the action by ridge regression",
    "action_mlp": "the same by a network with one hidden layer",
    "time_to_end_ridge": "R² of the number of steps to the episode's end by ridge regression",
    "time_to_end_mlp": "the same by a network with one hidden layer",
    "temporal_order": "Kendall's tau of predicted and true order in an episode: 0 is chance",
    "retrieval_episode": "share of frames whose nearest among the episode's frames by another "
    "camera is the one of the same step (chance: 1 / frames per episode)",
    "rank_episode": "median rank of that one: 0 nearest, 0.5 chance, 1 farthest",
    "retrieval_all": "as retrieval_episode, among the frames of all held-out episodes",
    "rank_all": "as rank_episode, among the frames of all held-out episodes",
    "effective_rank": "directions that features use: between 1 and their width",
    "dead_units": "share of units that are the same for every picture",
    "feature_std": "mean standard deviation of a unit over pictures, in the features' own scale",
    "feature_cosine": "mean cosine between features of two pictures: 1 if they do not differ",
}

_RESAMPLES = 1000
_CONFIDENCE = 0.95
_HEALTH_PICTURES = 2048  # evenly chosen: bounds the cost of the effective rank
_DEAD = 1e-6  # deviation, as a share of the liveliest unit's


@dataclass
class OfflineConfig:
    """What the suite looks at.

    cameras:       cameras; for probes their features stand side by side, as for a policy.
                 [] = the data set's first two. Retrieval needs two at least.
    state_keys:  signals of the state; the action is the signal `action`
    rotation:    of poses among them, see `data.spaces`: as "6d" no number jumps
    selection:   which episodes, and the share of recording sessions held out. For encoders that
                 were pretrained on the same data, use the val_fraction that they had (or a smaller
                 one, whose sessions are among those): else they have seen the held-out pictures.
    max_episodes, frames_per_episode: of either side, evenly chosen
    num_seeds:   of the networks

    Raises UserError for numbers that leave nothing to compare.
    """

    cameras: list[str] = field(default_factory=list)
    state_keys: list[str] = field(
        default_factory=lambda: ["cartesian_position", "gripper_position", "joint_position"]
    )
    rotation: str = "6d"
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(val_fraction=0.25))
    max_episodes: int = 200
    frames_per_episode: int = 32
    num_seeds: int = 3

    def __post_init__(self) -> None:
        for name, least in (("max_episodes", 1), ("frames_per_episode", 2), ("num_seeds", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")


@dataclass(frozen=True)
class Frames:
    """One side's frames, n of them, episode by episode, in order.

    rows: int64 [n], of the index; sessions: [n]; steps: int64 [n]; features: float32 [n, V, D];
    targets: name -> float [n, K]
    """

    rows: np.ndarray
    steps: np.ndarray
    sessions: np.ndarray
    features: np.ndarray
    targets: dict[str, np.ndarray]

    @property
    def side_by_side(self) -> np.ndarray:
        """Features [n, V * D]."""
        return rearrange(self.features, "n v d -> n (v d)")

    @property
    def episodes(self) -> list[slice]:
        """Where each episode's frames are."""
        begins = [0, *(np.flatnonzero(np.diff(self.rows)) + 1), len(self.rows)]
        return [slice(a, b) for a, b in zip(begins[:-1], begins[1:], strict=True)]


def offline_scores(
    encoder: Encoder, index: Index, config: OfflineConfig | None = None, seed: int = 0
) -> dict[str, float]:
    """The scores named and explained in SCORES, and of each a 95% interval, `_low` and `_high`.

    Without a second camera there are none of retrieval. Intervals are by bootstrap over held-out
    episodes and, where networks are fitted, seeds; of feature health by jackknife over groups of
    sessions, because resampled pictures would be fewer and its rank lower. They say what other
    held-out episodes would have given, not what other training sessions would have; episodes of
    a session are alike, so they are rather too narrow.

    Raises UserError if the data lacks a camera or a signal, or has too few sessions to hold one
    out.
    """
    config = config or OfflineConfig()
    training, held_out = read_frames(encoder, index, config)
    rng = np.random.default_rng(seed)
    scores: dict[str, tuple[float, float, float]] = {}
    for name in training.targets:
        ridge = ridge_answers(training, held_out, name)
        networks = [mlp_answers(training, held_out, name, s) for s in range(config.num_seeds)]
        scores[f"{name}_ridge"] = probe_score(training, held_out, name, [ridge], rng)
        scores[f"{name}_mlp"] = probe_score(training, held_out, name, networks, rng)
        if name == "time_to_end":
            scores["temporal_order"] = order_score(held_out, -ridge[:, 0], rng)
    if held_out.features.shape[1] > 1:
        scores |= retrieval_scores(training, held_out, rng)
    scores |= health_scores(training, held_out)
    return {
        name + part: float(number)
        for name in SCORES
        if name in scores
        for part, number in zip(("", "_low", "_high"), scores[name], strict=True)
    }


def read_frames(encoder: Encoder, index: Index, config: OfflineConfig) -> tuple[Frames, Frames]:
    """(training side, held-out side): chosen frames, their features and what to predict of them."""
    episodes, _ = select_episodes(index, config.selection)
    sides = split_sessions(index, episodes, config.selection.val_fraction)
    if len(sides[1]) == 0:
        raise UserError(
            f"{index.source}: no episodes are held out to judge by; "
            f"selection.val_fraction={config.selection.val_fraction} must be above 0"
        )
    cameras = config.cameras or index.cameras[:2]
    spaces = {
        "state": signal_space(index, tuple(config.state_keys), config.rotation),
        "action": action_space(index, "default", config.rotation),
    }
    frames = []
    for side in sides:
        pairs = choose_steps(index, side, config.max_episodes, config.frames_per_episode)
        rows, steps = pairs.T
        targets = {k: s.read(index.signals, index.starts[rows] + steps) for k, s in spaces.items()}
        targets["time_to_end"] = (index.lengths[rows] - 1 - steps)[:, None]
        features = embed_steps(encoder, index, pairs, cameras)
        features = rearrange(features, "n (v d) -> n v d", v=len(cameras))
        sessions = index.table["session"].to_numpy()[rows]
        frames.append(Frames(rows, steps, sessions, features, targets))
    return frames[0], frames[1]


# --------------------------------------------------------------------------- intervals


def bootstrap(
    statistic: Callable[..., float], rng: np.random.Generator, *sizes: int
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of index arrays, one per size, each drawn independently.

    The value is that of all in order; the interval the 2.5 and 97.5 percentiles over resamples.
    """
    value = statistic(*(np.arange(size) for size in sizes))
    draws = [
        statistic(*(rng.integers(size, size=size) for size in sizes)) for _ in range(_RESAMPLES)
    ]
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return value, float(low), float(high)


def jackknife(
    statistic: Callable[[np.ndarray], float], folds: list[np.ndarray]
) -> tuple[float, float, float]:
    """(value, low, high) of a statistic of bool [n], leaving each fold out in turn.

    The interval is Student's, with the standard error sqrt((g - 1) / g sum (x_i - mean x)^2).
    """
    count = len(folds)
    value = statistic(np.ones(len(folds[0]), bool))
    without = np.array([statistic(~fold) for fold in folds])
    error = np.sqrt((count - 1) * without.var())
    margin = t.ppf((1 + _CONFIDENCE) / 2, count - 1) * error
    return value, float(value - margin), float(value + margin)


# --------------------------------------------------------------------------- probes


def ridge_answers(training: Frames, held_out: Frames, name: str) -> np.ndarray:
    """Predictions [q, K] for the held-out frames; each dimension has its own strength."""
    targets, features = training.targets[name], training.side_by_side
    best = ridge_errors(features, targets, training.sessions).argmin(axis=0)
    predictions = ridge_predictions(features, targets, held_out.side_by_side)
    return predictions[best, :, np.arange(targets.shape[1])].T


def mlp_answers(training: Frames, held_out: Frames, name: str, seed: int) -> np.ndarray:
    """Predictions [q, K] for the held-out frames by a small network."""
    return mlp_predictions(
        training.side_by_side,
        training.targets[name],
        training.sessions,
        held_out.side_by_side,
        seed,
    )


def probe_score(
    training: Frames,
    held_out: Frames,
    name: str,
    answers: list[np.ndarray],
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """R^2 of `answers` [q, K] each, their mean.

    Errors are compared with those of always answering the training side's mean, both in units of
    its deviation and summed over dimensions; those that do not vary in training are left out. (The
    mean of each dimension's own R^2, as of `probe_encoder`, is at the mercy of one that hardly
    varies in the few episodes of a resample.)
    """
    wanted, targets = held_out.targets[name], training.targets[name]
    weights = varying(targets) / targets.var(axis=0).clip(1e-12)
    blind = _per_episode(held_out, (wanted - targets.mean(axis=0)) ** 2 @ weights)
    wrong = np.stack([_per_episode(held_out, (a - wanted) ** 2 @ weights) for a in answers])

    def score(members: np.ndarray, episodes: np.ndarray) -> float:
        return 1 - float(wrong[members][:, episodes].sum(axis=1).mean() / blind[episodes].sum())

    return bootstrap(score, rng, len(answers), len(blind))


def _per_episode(frames: Frames, values: np.ndarray) -> np.ndarray:
    """Sums of values [n] over each episode's frames, [E]."""
    return np.array([values[episode].sum() for episode in frames.episodes])


def order_score(
    frames: Frames, predicted: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Kendall's tau-b of predicted times [n] and true ones in each episode, the mean over them.

    Order is judged by a regressed time, not by neighbours in another episode as in TCC (Dwibedi et
    al. 2019), which presumes that both show one task: those of DROID do not.
    """
    taus = []
    for episode in frames.episodes:
        tau = kendalltau(predicted[episode], frames.steps[episode]).statistic
        taus.append(0.0 if np.isnan(tau) else tau)  # the same time for all frames says nothing
    return bootstrap(lambda episodes: float(np.mean(np.array(taus)[episodes])), rng, len(taus))


# --------------------------------------------------------------------------- retrieval


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


# --------------------------------------------------------------------------- health


def health_scores(training: Frames, held_out: Frames) -> dict[str, tuple[float, float, float]]:
    """Of the pictures of both sides and all cameras, since nothing is fitted."""
    num_cameras = held_out.features.shape[1]
    features = rearrange(
        np.concatenate([training.features, held_out.features]), "n v d -> (n v) d"
    ).astype(np.float64)
    sessions = np.concatenate([training.sessions, held_out.sessions]).repeat(num_cameras)
    some = np.linspace(0, len(features) - 1, min(_HEALTH_PICTURES, len(features))).astype(int)
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
    """Share of the units of [n, D] that do not move, measured by the liveliest."""
    std = features.std(axis=0)
    return float(np.mean(std <= _DEAD * std.max()))


def mean_cosine(features: np.ndarray) -> float:
    """Mean cosine of two different rows of [n, D]."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    count = len(units)
    return float(((units.sum(axis=0) ** 2).sum() - (units**2).sum()) / (count * (count - 1)))
