"""The offline suite: scores of frozen features on recorded data, without a simulator.

    probes           predict state, action, time to the end, by ridge regression and by a network
    temporal order   do predicted times put an episode's frames in their order? (Kendall's tau)
    retrieval        does a frame find the frame that another camera took at the same step?
    feature health   do features differ between pictures, and in how many directions?

Probes are fitted on training sessions. All scores but feature health are measured on whole held-out
recording sessions. They do not replace success rates. Called by `mcr evaluate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from mcr.data.index import Index, open_index
from mcr.evaluation.contestants import identity, with_yardsticks
from mcr.evaluation.feature_health import health_scores
from mcr.evaluation.intervals import bootstrap
from mcr.evaluation.probes import mlp_predictions, ridge_errors, ridge_predictions, varying
from mcr.evaluation.recorded_frames import Frames, OfflineConfig, held_out_sessions, read_frames
from mcr.evaluation.results import Results, versions
from mcr.evaluation.retrieval import retrieval_scores
from mcr.evaluation.seen_sessions import seen_sessions
from mcr.evaluation.task_sets import DEVELOPMENT
from mcr.models.encoder import Encoder
from mcr.models.loading import load_model

SCORES = {
    "state_ridge": "R² of the state by ridge regression: 1 perfect, 0 without features",
    "state_mlp": "the same by a network with one hidden layer",
    "action_ridge": "R² of the action by ridge regression",
    "action_mlp": "the same by a network with one hidden layer",
    "time_to_end_ridge": "R² of the number of steps to the episode's end by ridge regression",
    "time_to_end_mlp": "the same by a network with one hidden layer",
    "temporal_order": "Kendall's tau of predicted and true order in an episode: 0 is chance",
    "retrieval_episode": "share of frames whose nearest frame of another camera, within the "
    "episode, is of the same step (chance: 1 / frames per episode)",
    "rank_episode": "median rank of the frame of the same step: 0 nearest, 0.5 chance, 1 farthest",
    "retrieval_all": "as retrieval_episode, among the frames of all held-out episodes",
    "rank_all": "as rank_episode, among the frames of all held-out episodes",
    "effective_rank": "number of directions that features use: between 1 and their dimension",
    "dead_units": "share of units that are constant over pictures",
    "feature_std": "mean standard deviation of a unit over pictures, in the features' own scale",
    "feature_cosine": "mean cosine between features of two pictures: 1 if all are equal",
}


def evaluate_offline(
    encoders: Sequence[str],
    data: str,
    folder: str | Path,
    config: OfflineConfig | None = None,
    device: str = "cpu",
    data_index: str | None = None,
    schema: str | None = None,
) -> str:
    """Score encoders on recorded data, and write results.csv, .md and .png to `folder`.

    An untrained encoder of each kind of network and ImageNet features are scored, too. Rows that
    the folder has already are not measured again. An encoder that was pretrained on some of the
    held-out sessions is marked in the table, and the column "seen" says on how many.

    encoders: "NAME=SOURCE" or "SOURCE", what `load_model` reads
    data:     a data set of any format
    device:   where the encoders run
    data_index, schema: as `data.index` and `data.schema` in training
    Returns the table in Markdown. Raises UserError as `offline_scores`, and for a folder with
    results of other data, of another config or of another encoder under the same name.
    """
    folder, config = Path(folder), config or OfflineConfig()
    index = open_index(data, data_index, schema=schema)
    config = config.resolved(index)
    results = Results(folder, {"data": index.fingerprint, **dataclasses.asdict(config)})
    held_out = held_out_sessions(index, config)
    sources, _ = with_yardsticks(encoders, folder / "untrained")
    for name, source in sources.items():
        encoder = load_model(source, device)
        its_identity = identity(encoder)
        if results.has(name, its_identity, next(iter(SCORES))):
            continue
        print(f"{name}: encoding and probing", flush=True)
        seen = held_out & seen_sessions(encoder.provenance, index)
        about = {
            **{"suite": "offline", "set": DEVELOPMENT, "encoder": name, "source": source},
            **its_identity,
            **{"held_out": str(len(held_out)), "seen": str(len(seen))},
        }
        results.add(_rows(about, offline_scores(encoder, index, config)))
    return _report(results)


def _rows(about: dict[str, Any], scores: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of results.csv of one encoder."""
    return [
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


def _report(results: Results) -> str:
    """Write the report, with a mark behind encoders that have seen held-out sessions."""
    rows = results.rows
    counts = rows.drop_duplicates("encoder").set_index("encoder")[["seen", "held_out"]].astype(int)
    saw = counts[counts["seen"] > 0]
    names = {name: f"{name} (seen)" for name in saw.index}
    remarks = [
        f"{names[name]}: pretrained on {seen} of the {held_out} held-out sessions; its scores are "
        "not those of unseen data."
        for name, seen, held_out in saw.itertuples()
    ]
    marked = rows.replace({"encoder": names})
    return results.write_report(marked, percent=False, remarks="\n\n".join(remarks))


def offline_scores(
    encoder: Encoder, index: Index, config: OfflineConfig | None = None, seed: int = 0
) -> dict[str, float]:
    """The scores that SCORES explains, each with a 95% interval in `<score>_low` and `_high`.

    Retrieval needs a second camera. Intervals come from a bootstrap over held-out episodes and, for
    networks, over seeds. Those of feature health come from a jackknife over groups of sessions,
    because a resample has fewer different pictures and thus a lower rank. Intervals tell how scores
    vary with the held-out episodes, not with the training sessions. Since episodes of a session
    resemble each other, they are somewhat too narrow.

    Raises UserError if the data lacks a camera or a signal, or has too few sessions to hold one
    out.
    """
    config = config or OfflineConfig()
    training, held_out = read_frames(encoder, index, config)
    rng = np.random.default_rng(seed)
    scores: dict[str, tuple[float, float, float]] = {}
    by_ridge = ridge_answers(training, held_out)
    for name, ridge in by_ridge.items():
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


def ridge_answers(training: Frames, held_out: Frames) -> dict[str, np.ndarray]:
    """Ridge regression's predictions of each target for the held-out frames, name -> [q, K].

    The strength is chosen for each dimension of a target. All targets share the decomposition of
    the features, which takes most of the time.
    """
    features, targets = training.side_by_side, np.hstack(list(training.targets.values()))
    best = ridge_errors(features, targets, training.sessions).argmin(axis=0)
    predictions = ridge_predictions(features, targets, held_out.side_by_side)
    chosen = predictions[best, :, np.arange(targets.shape[1])].T
    ends = np.cumsum([target.shape[1] for target in training.targets.values()])
    return dict(zip(training.targets, np.split(chosen, ends[:-1], axis=1), strict=True))


def mlp_answers(
    training: Frames, held_out: Frames, name: str, seed: int, device: str = "cpu"
) -> np.ndarray:
    """A small network's predictions for the held-out frames, [q, K]. It is trained on `device`."""
    return mlp_predictions(
        training.side_by_side,
        training.targets[name],
        training.sessions,
        held_out.side_by_side,
        seed,
        device,
    )


def probe_score(
    training: Frames,
    held_out: Frames,
    name: str,
    answers: list[np.ndarray],
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """R^2 of predictions, the mean over `answers`, [q, K] each.

    Squared errors are in units of the training side's variance and summed over dimensions. R^2
    compares them with the errors of always predicting the training side's mean. Dimensions that are
    constant in training are left out. (`probe_encoder` averages the R^2 of the dimensions instead.
    In a resample of few episodes, one dimension that hardly varies would dominate that average.)
    """
    wanted, targets = held_out.targets[name], training.targets[name]
    weights = varying(targets) / targets.var(axis=0).clip(1e-12)
    blind = _per_episode(held_out, (wanted - targets.mean(axis=0)) ** 2 @ weights)
    wrong = np.stack([_per_episode(held_out, (a - wanted) ** 2 @ weights) for a in answers])

    def score(members: np.ndarray, episodes: np.ndarray) -> float:
        return 1 - float(wrong[members][:, episodes].sum(axis=1).mean() / blind[episodes].sum())

    return bootstrap(score, rng, len(answers), len(blind))


def _per_episode(frames: Frames, values: np.ndarray) -> np.ndarray:
    """The sums of values [n] over each episode's frames, [E]."""
    return np.array([values[episode].sum() for episode in frames.episodes])


def order_score(
    frames: Frames, predicted: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Kendall's tau-b between predicted times [n] and true ones, the mean over episodes.

    TCC (Dwibedi et al. 2019) judges the order by nearest neighbours in another episode, which must
    show the same task. Episodes of DROID do not, so a probe predicts the time here.
    """
    taus = []
    for episode in frames.episodes:
        tau = kendalltau(predicted[episode], frames.steps[episode]).statistic
        taus.append(0.0 if np.isnan(tau) else tau)  # NaN if all predicted times are equal
    return bootstrap(lambda episodes: float(np.mean(np.array(taus)[episodes])), rng, len(taus))
