"""Probes: how well an encoder's frozen features predict the robot's state and action.

The losses of differently trained encoders cannot be compared, but their probes can. A probe is a
ridge regression or a small network. It predicts the robot's state, the commanded action, or the
time within the episode from the features of a frame. It is fitted on training sessions and judged
by R^2 on held-out ones. `comparison` calls `probe_encoder`, and `offline` calls the regressions.

scikit-learn is not used: its ridge regression cannot choose a strength for each target by
cross-validation over groups, and the closed form here takes five lines.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mcr.data.frames import FrameReader
from mcr.data.index import Index
from mcr.data.selection import Episodes
from mcr.data.spaces import action_space, signal_space
from mcr.errors import UserError
from mcr.models.encoder import Encoder

STRENGTHS = 10.0 ** np.arange(-4, 5)  # of the ridge penalty, divided by the number of rows
MAX_EPISODES = 200  # on each side, evenly spaced
FRAMES_PER_EPISODE = 32
NUM_FOLDS = 5
MOST_STD = 5.0  # features further from their mean count as this many standard deviations

HIDDEN, MLP_STEPS, MLP_BATCH, MLP_LR, MLP_WEIGHT_DECAY = 256, 300, 256, 1e-3, 1e-2
_MLP_STEPS_PER_VALIDATION = 10

_IMAGES_AT_ONCE = 64


def probe_encoder(
    encoder: Encoder,
    index: Index,
    training: Episodes,
    held_out: Episodes,
    cameras: Sequence[str],
    state_keys: Sequence[str],
    rotation: str = "6d",
) -> dict[str, float]:
    """R^2 of "state", "action" and "time" on the held-out episodes, the mean over dimensions.

    1 is perfect. 0 is the score of always predicting the training side's mean, without features.

    cameras:    their features are concatenated, as for a policy; [] = those that the schema uses
    state_keys: signals of the state; [] = the state that the schema names
    rotation:   how rotations in poses are represented, see `data.spaces`; "6d" is continuous

    Raises UserError if there are no held-out episodes or the data lacks a camera or signal.
    """
    if len(held_out) == 0:
        raise UserError(
            f"{index.source}: no episodes are held out to probe; set data.selection.val_fraction"
        )
    cameras = cameras or index.default_cameras
    steps, held_steps = (
        choose_steps(index, with_cameras(index, side, cameras), MAX_EPISODES, FRAMES_PER_EPISODE)
        for side in (training, held_out)
    )
    features = embed_steps(encoder, index, steps, cameras)
    held_features = embed_steps(encoder, index, held_steps, cameras)
    sessions = index.table["session"].to_numpy()[steps[:, 0]]
    spaces = {
        "state": signal_space(index, tuple(state_keys), rotation),
        "action": action_space(index, "default", rotation),
    }
    scores = {}
    for name, space in spaces.items():
        if space.size == 0:
            continue
        targets, held_targets = (
            space.read(index.signals, index.starts[s[:, 0]] + s[:, 1]) for s in (steps, held_steps)
        )
        scores[name] = ridge_score(features, targets, sessions, held_features, held_targets)
    times, held_times = (
        (s[:, 1] / (index.lengths[s[:, 0]] - 1))[:, None] for s in (steps, held_steps)
    )
    scores["time"] = ridge_score(features, times, sessions, held_features, held_times)
    return scores


def choose_steps(
    index: Index, episodes: Episodes, max_episodes: int, frames_per_episode: int
) -> np.ndarray:
    """(row, step) pairs, int64 [n, 2], in order: evenly spaced episodes and steps of each."""
    count = min(max_episodes, len(episodes))
    pairs = []
    for row in episodes.rows[np.linspace(0, len(episodes) - 1, count).astype(int)].tolist():
        length = int(index.lengths[row])
        steps = np.linspace(0, length - 1, min(frames_per_episode, length)).astype(int)
        pairs += [(row, step) for step in steps.tolist()]
    return np.array(pairs, np.int64)


def with_cameras(index: Index, episodes: Episodes, cameras: Sequence[str]) -> Episodes:
    """The episodes that have all of these cameras. Raises UserError if none has, and if no episode
    of the data set has one of them.
    """
    for camera in cameras:
        if camera not in index.cameras:
            raise UserError(
                f"{index.source}: no camera {camera!r}; it has {', '.join(index.cameras)}"
            )
    columns = [index.camera(camera) for camera in cameras]
    has_all = (index.sizes[episodes.rows][:, columns, 0] > 0).all(axis=1)
    if not has_all.any():
        raise UserError(f"{index.source}: no episode has all of the cameras {', '.join(cameras)}")
    return episodes.of(has_all)


@torch.no_grad()
def embed_steps(
    encoder: Encoder, index: Index, steps: np.ndarray, cameras: Sequence[str]
) -> np.ndarray:
    """Features of (row, step) pairs, int64 [n, 2], all cameras concatenated: float32 [n, V * D].

    Steps of an episode must be in order. Frames are read episode by episode.
    """
    embedded = []
    with contextlib.closing(FrameReader(index)) as reader:
        for camera in cameras:
            frames = _frames_of_steps(reader, steps, index.camera(camera))
            features = []
            while batch := list(islice(frames, _IMAGES_AT_ONCE)):
                features.append(encoder(batch).float().cpu().numpy())
            embedded.append(np.concatenate(features))
    return np.concatenate(embedded, axis=1)


def _frames_of_steps(reader: FrameReader, steps: np.ndarray, camera: int) -> Iterator[np.ndarray]:
    borders = [0, *(np.flatnonzero(np.diff(steps[:, 0])) + 1).tolist(), len(steps)]
    for begin, end in itertools.pairwise(borders):
        row = int(steps[begin, 0])
        yield from reader.episode(row, camera, steps[begin:end, 1].tolist())


# --------------------------------------------------------------------------- regression


def ridge_score(
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    held_features: np.ndarray,
    held_targets: np.ndarray,
) -> float:
    """R^2 of ridge regression from features [n, D] to targets [n, K], on the held-out rows.

    groups: [n], the strength is chosen by cross-validation over these groups of training rows
    Dimensions of the targets that are constant in training are left out.
    """
    varies = varying(targets)
    targets, held_targets = targets[:, varies], held_targets[:, varies]
    best = int(ridge_errors(features, targets, groups).mean(axis=1).argmin())
    predicted = ridge_predictions(features, targets, held_features)[best]
    wrong = ((predicted - held_targets) ** 2).sum(axis=0)
    blind = ((held_targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    return float((1 - wrong / blind.clip(1e-12)).mean())


def varying(targets: np.ndarray) -> np.ndarray:
    """Which dimensions of targets [n, K] are not constant, bool [K]."""
    return targets.std(axis=0) > 1e-6


def ridge_errors(features: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Squared errors of cross-validation over groups [n]: float64 [number of STRENGTHS, K].

    They are summed over rows, in units of the training rows' variance.
    """
    errors = np.zeros((len(STRENGTHS), targets.shape[1]))
    for fold in session_folds(groups):
        predictions = ridge_predictions(features[~fold], targets[~fold], features[fold])
        scale = targets[~fold].std(axis=0).clip(1e-6)
        errors += (((predictions - targets[fold]) / scale) ** 2).sum(axis=1)
    return errors


def session_folds(groups: np.ndarray) -> list[np.ndarray]:
    """At most NUM_FOLDS folds, bool [n] each. A group [n] lies within one fold.

    Raises UserError if there is only one group.
    """
    names, members = np.unique(groups, return_inverse=True)
    if len(names) == 1:
        raise UserError(
            f"all episodes of the training side are of the one session '{names[0]}': choosing the "
            "regression's strength needs at least two sessions"
        )
    count = min(NUM_FOLDS, len(names))
    return [members % count == fold for fold in range(count)]


def ridge_predictions(features: np.ndarray, targets: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Ridge regression's predictions for queries [q, D]: float64 [number of STRENGTHS, q, K].

    In closed form. Features and queries are standardised by the training rows' mean and standard
    deviation, and clipped to MOST_STD of them. The intercept is not penalised.
    """
    inputs, test_inputs = _standardised(features, queries)
    centred = targets - targets.mean(axis=0)
    # X^T (X X^T + s)^-1 = (X^T X + s)^-1 X^T: the smaller of the two matrices is decomposed.
    if inputs.shape[0] < inputs.shape[1]:
        values, vectors = np.linalg.eigh(inputs @ inputs.T)
        coefficients, projected = vectors.T @ centred, test_inputs @ inputs.T @ vectors
    else:
        values, vectors = np.linalg.eigh(inputs.T @ inputs)
        coefficients, projected = vectors.T @ (inputs.T @ centred), test_inputs @ vectors
    shrinkage = 1 / (values.clip(0) + STRENGTHS[:, None] * len(features))
    predictions = [projected @ (each[:, None] * coefficients) for each in shrinkage]
    return np.stack(predictions) + targets.mean(axis=0)


@torch.enable_grad()
def mlp_predictions(
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    queries: np.ndarray,
    seed: int,
    device: str = "cpu",
) -> np.ndarray:
    """Predictions of a network with one hidden layer for queries [q, D]: float64 [q, K].

    Features and targets are standardised by the training rows. One fold of the groups [n], another
    one for each seed, is left out for validation; the predictions are those of the step with the
    least validation error. The untrained network predicts the mean, so features without information
    score about 0 and not far below. A seed stands for the same initial weights and batches on every
    `device`.
    """
    inputs, test_inputs = (
        torch.from_numpy(x).float().to(device) for x in _standardised(features, queries)
    )
    mean, std = targets.mean(axis=0), targets.std(axis=0).clip(1e-6)
    wanted = torch.from_numpy((targets - mean) / std).float().to(device)
    folds = session_folds(groups)
    fold = folds[seed % len(folds)]
    kept, left_out = (torch.from_numpy(np.flatnonzero(side)) for side in (~fold, fold))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(HIDDEN, wanted.shape[1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        network = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.ReLU(), last).to(device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=MLP_LR, weight_decay=MLP_WEIGHT_DECAY
        )
        best, predicted = torch.inf, wanted.new_zeros(len(test_inputs), wanted.shape[1])
        for step in range(MLP_STEPS):
            if step % _MLP_STEPS_PER_VALIDATION == 0:
                with torch.no_grad():
                    error = F.mse_loss(network(inputs[left_out]), wanted[left_out]).item()
                    if error < best:
                        best, predicted = error, network(test_inputs)
            rows = kept[torch.randint(len(kept), (MLP_BATCH,))]
            loss = F.mse_loss(network(inputs[rows]), wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return predicted.cpu().double().numpy() * std + mean


def _standardised(features: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise both, as float64, by the features' mean and standard deviation.

    Units that are constant in the features are only shifted. Numbers are clipped to MOST_STD: a
    unit that is active in a few pictures of one side alone would lie thousands of standard
    deviations away on the other, and decide every prediction there.
    """
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std = np.where(std < 1e-6, 1.0, std)
    standardised = ((values - mean) / std for values in (features, queries))
    inputs, test_inputs = (values.clip(-MOST_STD, MOST_STD) for values in standardised)
    return inputs, test_inputs
