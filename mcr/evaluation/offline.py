"""The offline suite: what frozen features say on recorded data, without a simulator.

    probes           state, action, time to the end, by ridge regression and by a small network
    temporal order   do predicted times put an episode's frames in their order? (Kendall's tau)
    retrieval        does a frame find the frame that another camera took at the same step?
    feature health   do features differ between pictures, and in how many directions?

Probes are fitted on training sessions; all but feature health is judged on whole held-out recording
sessions. Each frame goes through the encoder once, for all scores. Called by `mcr evaluate`.
It is no substitute for success rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from mcr.data.index import Index, open_index
from mcr.evaluation.contestants import named_encoders, write_untrained_encoders
from mcr.evaluation.feature_health import health_scores
from mcr.evaluation.intervals import bootstrap
from mcr.evaluation.probes import mlp_predictions, ridge_errors, ridge_predictions, varying
from mcr.evaluation.recorded_frames import Frames, OfflineConfig, read_frames
from mcr.evaluation.results import Results, versions
from mcr.evaluation.retrieval import retrieval_scores
from mcr.features.key import weights_fingerprint
from mcr.models.encoder import Encoder
from mcr.models.loading import load_model

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


def evaluate_offline(
    encoders: Sequence[str],
    data: str,
    folder: str | Path,
    config: OfflineConfig | None = None,
    device: str = "cpu",
) -> str:
    """Score encoders on recordings, and write results.csv, results.md, results.png to `folder`.

    An untrained encoder of each kind of network is scored, too. What the folder has is kept.

    encoders: "NAME=SOURCE" or "SOURCE", what `load_model` reads
    data:     shards or a tree, as training reads them
    device:   of the encoder
    Returns the table in Markdown. Raises UserError as `offline_scores`, and for a folder with
    results of other data or of other weights under the same name.
    """
    folder, config = Path(folder), config or OfflineConfig()
    index = open_index(data)
    held_out = config.selection.val_fraction
    results = Results(folder, {"data": index.fingerprint, "held out": held_out})
    sources = named_encoders(encoders)
    sources |= write_untrained_encoders(sources.values(), folder / "untrained")
    for name, source in sources.items():
        encoder = load_model(source, device)
        weights = weights_fingerprint(encoder)
        if results.has(name, weights, next(iter(SCORES))):
            continue
        print(f"{name}: encoding and probing", flush=True)
        scores = offline_scores(encoder, index, config)
        about = {"suite": "offline", "encoder": name, "source": source, "weights": weights}
        rows: list[dict[str, Any]] = [
            {
                **about,
                "task": score,
                "value": scores[score],
                "low": scores[f"{score}_low"],
                "high": scores[f"{score}_high"],
                "versions": versions(),
            }
            for score in SCORES
            if score in scores
        ]
        results.add(rows)
    return results.write_report(results.rows, percent=False)


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
