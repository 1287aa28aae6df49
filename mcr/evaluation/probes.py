"""Probes: how much of the robot can be read from an encoder's frozen features.

Losses of differently trained encoders do not compare; this does. Features of training episodes are
regressed on what the robot is at, is told to do, and how far the episode is; the regression, linear
or a small network, is judged on held-out recording sessions. It sees an encoder as a released file
and knows nothing of how it was trained. `probe_encoder` is called by `mcr compare`, the
regressions by `offline`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mcr.data.frames import FrameReader
from mcr.data.index import Index
from mcr.data.selection import Episodes
from mcr.data.spaces import action_space, signal_space
from mcr.errors import UserError
from mcr.models.encoder import Encoder

STRENGTHS = 10.0 ** np.arange(-4, 5)  # of the ridge, per row of standardised features
MAX_EPISODES = 200  # of either side, evenly chosen
FRAMES_PER_EPISODE = 32
NUM_FOLDS = 5

HIDDEN, MLP_STEPS, MLP_BATCH, MLP_LR, MLP_WEIGHT_DECAY = 256, 300, 256, 1e-3, 1e-2
_MLP_LOOK = 10  # steps between looks at the validation fold

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
    """{"state", "action", "time"} -> R^2 on the held-out episodes, the mean over dimensions.

    1 is perfect; 0 is always answering the mean of the training side, the best without looking.

    cameras:      cameras; their features stand side by side, as for a policy
    state_keys: signals of the state; the action is the signal `action`
    rotation:   of poses among them, see `data.spaces`: as "6d" no number jumps

    Raises UserError if there are no held-out episodes or the data lacks a camera or signal.
    """
    if len(held_out) == 0:
        raise UserError(
            f"{index.source}: no episodes are held out to probe; set data.selection.val_fraction"
        )
    steps, held_steps = (
        choose_steps(index, side, MAX_EPISODES, FRAMES_PER_EPISODE) for side in (training, held_out)
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
    """(row, step) pairs, int64 [n, 2]: evenly chosen episodes, and steps of each, in order."""
    count = min(max_episodes, len(episodes))
    pairs = []
    for row in episodes.rows[np.linspace(0, len(episodes) - 1, count).astype(int)].tolist():
        length = int(index.lengths[row])
        steps = np.linspace(0, length - 1, min(frames_per_episode, length)).astype(int)
        pairs += [(row, step) for step in steps.tolist()]
    return np.array(pairs, np.int64)


@torch.no_grad()
def embed_steps(
    encoder: Encoder, index: Index, steps: np.ndarray, cameras: Sequence[str]
) -> np.ndarray:
    """Features float32 [n, V * D] of (row, step) pairs int64 [n, 2], cameras side by side."""
    for camera in cameras:
        if camera not in index.cameras:
            raise UserError(
                f"{index.source}: no camera {camera!r}; it has {', '.join(index.cameras)}"
            )
    tasks = [
        (row, index.cameras.index(camera), step)
        for row, step in steps.tolist()
        for camera in cameras
    ]
    embedded = []
    with contextlib.closing(FrameReader(index)) as reader:
        for begin in range(0, len(tasks), _IMAGES_AT_ONCE):
            frames = [reader.read(*task) for task in tasks[begin : begin + _IMAGES_AT_ONCE]]
            embedded.append(encoder(np.stack(frames)).float().cpu().numpy())
    return rearrange(np.concatenate(embedded), "(n v) d -> n (v d)", v=len(cameras))


# --------------------------------------------------------------------------- regression


def ridge_score(
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    held_features: np.ndarray,
    held_targets: np.ndarray,
) -> float:
    """R^2 of ridge regression from features [n, D] to targets [n, K], on the held-out rows.

    groups [n]: the strength is chosen by cross-validation over them, within the training rows.
    Dimensions of the targets that do not vary in training are left out.
    """
    varies = varying(targets)
    targets, held_targets = targets[:, varies], held_targets[:, varies]
    best = int(ridge_errors(features, targets, groups).mean(axis=1).argmin())
    predicted = ridge_predictions(features, targets, held_features)[best]
    wrong = ((predicted - held_targets) ** 2).sum(axis=0)
    blind = ((held_targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    return float((1 - wrong / blind.clip(1e-12)).mean())


def varying(targets: np.ndarray) -> np.ndarray:
    """bool [K]: which dimensions of targets [n, K] are not constant."""
    return targets.std(axis=0) > 1e-6


def ridge_errors(features: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Cross-validated squared errors over groups [n], [number of STRENGTHS, K].

    Summed over rows, in units of the training rows' variance.
    """
    errors = np.zeros((len(STRENGTHS), targets.shape[1]))
    for fold in session_folds(groups):
        predictions = ridge_predictions(features[~fold], targets[~fold], features[fold])
        scale = targets[~fold].std(axis=0).clip(1e-6)
        errors += (((predictions - targets[fold]) / scale) ** 2).sum(axis=1)
    return errors


def session_folds(groups: np.ndarray) -> list[np.ndarray]:
    """bool [n] each: whole groups, dealt out over at most NUM_FOLDS folds."""
    names, members = np.unique(groups, return_inverse=True)
    if len(names) == 1:
        raise UserError(
            f"all episodes to probe with are of the one session '{names[0]}': at least two are "
            "needed to choose the regression's strength"
        )
    count = min(NUM_FOLDS, len(names))
    return [members % count == fold for fold in range(count)]


def ridge_predictions(features: np.ndarray, targets: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Predictions float64 [number of STRENGTHS, q, K] for queries [q, D].

    Closed form; features are standardised by those of the training rows, the intercept is free.
    """
    inputs, questions = _standardised(features, queries)
    left, values, right = np.linalg.svd(inputs, full_matrices=False)
    answers = left.T @ (targets - targets.mean(axis=0))
    projected = questions @ right.T
    shrinkage = values / (values**2 + STRENGTHS[:, None] * len(features))
    return np.einsum("qr,sr,rk->sqk", projected, shrinkage, answers) + targets.mean(axis=0)


@torch.enable_grad()
def mlp_predictions(
    features: np.ndarray, targets: np.ndarray, groups: np.ndarray, queries: np.ndarray, seed: int
) -> np.ndarray:
    """Predictions float64 [q, K] of a network with one hidden layer, for queries [q, D].

    Both sides are standardised by the training rows. One fold of groups [n], another for each seed,
    is not trained on: the answer is that of the step at which its error was least. The network
    begins by answering the mean, so that features that say nothing score about 0, not far below.
    """
    inputs, questions = (torch.from_numpy(x).float() for x in _standardised(features, queries))
    mean, std = targets.mean(axis=0), targets.std(axis=0).clip(1e-6)
    answers = torch.from_numpy((targets - mean) / std).float()
    folds = session_folds(groups)
    fold = folds[seed % len(folds)]
    kept, left_out = (torch.from_numpy(np.flatnonzero(side)) for side in (~fold, fold))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _mlp(inputs.shape[1], answers.shape[1])
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=MLP_LR, weight_decay=MLP_WEIGHT_DECAY
        )
        best, predicted = torch.inf, torch.zeros(len(questions), answers.shape[1])
        for step in range(MLP_STEPS):
            if step % _MLP_LOOK == 0:
                with torch.no_grad():
                    error = F.mse_loss(network(inputs[left_out]), answers[left_out]).item()
                    if error < best:
                        best, predicted = error, network(questions)
            rows = kept[torch.randint(len(kept), (MLP_BATCH,))]
            loss = F.mse_loss(network(inputs[rows]), answers[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return predicted.double().numpy() * std + mean


def _mlp(num_inputs: int, num_outputs: int) -> nn.Sequential:
    """One hidden layer; it answers 0 at first."""
    last = nn.Linear(HIDDEN, num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(num_inputs, HIDDEN), nn.ReLU(), last)


def _standardised(features: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by the mean and deviation of the features, float64; units that rest stay as they are."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std = np.where(std < 1e-6, 1.0, std)
    return (features - mean) / std, (queries - mean) / std
