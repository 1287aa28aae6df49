"""Inspection of signals: what their numbers look like, what `action` is, how often nothing moves.

All functions take signals of whole episodes, one after the other: float32 [T, D].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from mcr.data.index import Index

IDLE_SPEED = 0.05  # rad/s of the fastest joint (3 degrees/s), and gripper strokes/s
_SAME = 1e-4  # commands that differ by less are the same: float32, metres and radians
_BINS = 40
_NEAR_PI = (math.pi - 0.05, math.pi + 0.01)  # DROID's arm has a joint limit 0.07 short of pi


@dataclass(frozen=True)
class Dimension:
    """One dimension of one signal. All numbers except `num_not_finite` are of its finite values.

    num_not_finite: how many values are NaN or infinite
    num_jumps:      how often it changes by more than pi from one step to the next
    low, high:      1st and 99th percentile
    counts, edges:  histogram of a range that is slightly wider than low .. high:
                    int64 [n], float64 [n + 1]
    """

    signal: str
    number: int
    num_not_finite: int
    num_jumps: int
    minimum: float
    low: float
    mean: float
    std: float
    high: float
    maximum: float
    counts: np.ndarray
    edges: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.signal}[{self.number}]"

    @property
    def remarks(self) -> list[str]:
        """Return one phrase for each thing that a user of this dimension should know."""
        remarks = [f"{self.num_not_finite:,} not finite"] if self.num_not_finite else []
        if self.minimum == self.maximum:
            remarks.append("constant")
        if _NEAR_PI[0] <= max(-self.minimum, self.maximum) <= _NEAR_PI[1]:
            remarks.append(f"reaches +-pi, {self.num_jumps:,} jumps across")
        return remarks


def summarise(signal: str, number: int, values: np.ndarray, follows: np.ndarray) -> Dimension:
    """Summarise one dimension.

    values:  float32 [T]
    follows: bool [T - 1], whether a step is of the same episode as the step before it
    """
    finite = np.isfinite(values)
    kept = values[finite].astype(np.float64) if finite.any() else np.array([math.nan])
    jumps = np.abs(np.diff(kept)) > math.pi
    low, high = np.quantile(kept, [0.01, 0.99])
    margin = 0.1 * (high - low) or 0.5
    bounds = (low - margin, high + margin) if finite.any() else (0.0, 1.0)
    counts, edges = np.histogram(kept, _BINS, bounds)
    return Dimension(
        signal,
        number,
        num_not_finite=int((~finite).sum()),
        num_jumps=int(jumps[_are_neighbours(finite, follows)].sum()),
        minimum=float(kept.min()),
        low=float(low),
        mean=float(kept.mean()),
        std=float(kept.std()),
        high=float(high),
        maximum=float(kept.max()),
        counts=counts,
        edges=edges,
    )


def _are_neighbours(finite: np.ndarray, follows: np.ndarray) -> np.ndarray:
    """Say for each finite value and the next one whether they follow in time, bool [n - 1]."""
    positions = np.flatnonzero(finite)
    return (np.diff(positions) == 1) & follows[positions[1:] - 1]


def action_means(index: Index, signals: np.ndarray) -> dict[str, tuple[float, float]]:
    """Compare `action` with each pair of an arm's and a gripper's command of its width.

    Returns the pair's name -> (largest difference, share of steps that differ), nearest first.
    """
    columns = index.info["columns"]
    if "action" not in columns:
        return {}
    action = signals[:, slice(*columns["action"])]
    commands = [key for key in columns if key.startswith("action_dict/")]
    grippers = [key for key in commands if "gripper" in key]
    found = {}
    for arm, gripper in product([key for key in commands if key not in grippers], grippers):
        command = signals[:, index.columns((arm, gripper))]
        if command.shape != action.shape:
            continue
        with np.errstate(invalid="ignore"):  # NaN and infinities are reported elsewhere
            difference = np.abs(command - action)
        difference[(command == action) | (np.isnan(command) & np.isnan(action))] = 0
        worst = np.nan_to_num(difference.max(axis=1), nan=np.inf)
        name = f"{arm} + {gripper}".replace("action_dict/", "")
        found[name] = (float(worst.max()), float((worst > _SAME).mean()), float(np.median(worst)))
    nearest_first = sorted(found.items(), key=lambda item: item[1][2])
    return {name: (largest, share) for name, (largest, share, _) in nearest_first}


def idle_share(index: Index, signals: np.ndarray, follows: np.ndarray) -> float | None:
    """Return the share of steps in which nothing moves; None without joint positions or a rate."""
    moving = tuple(k for k in ("joint_position", "gripper_position") if k in index.info["columns"])
    if "joint_position" not in moving or not follows.any() or not index.schema.hz:
        return None
    with np.errstate(invalid="ignore"):  # a step to or from NaN is not idle
        steps = np.diff(signals[:, index.columns(moving)], axis=0)[follows]
    return float((np.abs(steps).max(axis=1) * index.schema.hz < IDLE_SPEED).mean())
