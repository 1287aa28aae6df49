"""Selection: which episodes of an index a recipe trains on, and which it holds out.

A filter is an option of the recipe and changes no file. The split is by recording session, because
neighbouring episodes share scene, light and camera pose, and would leak from one side to the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mcr.data.episode import LANGUAGES
from mcr.data.index import Index
from mcr.errors import UserError, require_choice


@dataclass
class SelectionConfig:
    """Which episodes to use.

    min_frames:   shorter episodes are left out; the paper: 40
    outcome:      "any", or "success" to leave failures out (where the data set says so)
    language:     "none" required; "any" or "all" of the three instructions given. The losses never
                  read language: the paper's filter "all" halves DROID.
    min_words:    with language any/all: shorter instructions do not count; upstream: 2
    val_fraction: share of recording sessions that is held out, 0 for none
    """

    min_frames: int = 40
    outcome: str = "any"
    language: str = "none"
    min_words: int = 2
    val_fraction: float = 0.05


def select_episodes(index: Index, config: SelectionConfig) -> tuple[np.ndarray, list[str]]:
    """Rows of the index that pass, int64 [n] ascending, and a line per filter: what it left.

    Raises UserError for unknown options and when nothing is left, naming the filter.
    """
    require_choice("data.selection.outcome", config.outcome, ("any", "success"))
    require_choice("data.selection.language", config.language, ("none", "any", "all"))
    table = index.table
    keep = pd.Series(True, index=table.index)
    report = [_count("all", index, keep)]
    for name, passes in _filters(table, config).items():
        keep &= passes
        report.append(_count(name, index, keep))
        if not keep.any():
            raise UserError(
                f"{index.source}: no episode is left by the filter {name}: " + "; ".join(report)
            )
    return np.flatnonzero(keep.to_numpy()), report


def _filters(table: pd.DataFrame, config: SelectionConfig) -> dict[str, pd.Series]:
    # 3 is what the sampling rule needs: MIDDLE is drawn from 2 .. T-1
    filters = {f"min_frames={config.min_frames}": table["length"] >= max(3, config.min_frames)}
    if config.outcome == "success":
        filters["outcome=success"] = table["outcome"] == "success"
    if config.language != "none":
        texts = [table[key].str.split().str.len() >= max(1, config.min_words) for key in LANGUAGES]
        stacked = pd.concat(texts, axis=1)
        passes = stacked.all(axis=1) if config.language == "all" else stacked.any(axis=1)
        filters[f"language={config.language}"] = passes
    return filters


def _count(name: str, index: Index, keep: pd.Series) -> str:
    frames = int(index.table["length"][keep].sum())
    return f"{name}: {int(keep.sum())} episodes, {frames} frames"


def split_sessions(
    index: Index, rows: np.ndarray, val_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, held-out rows), both int64; whole sessions only.

    A session is held out if the hash of its name falls below `val_fraction`: a pure function of the
    name, so that adding data moves no episode. If that holds out none of the sessions, or all, the
    one with the lowest hash is held out. Raises UserError if there is one session only.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"data.selection.val_fraction={val_fraction} must lie in [0, 1)")
    if val_fraction == 0:
        return rows, rows[:0]
    sessions = index.table["session"].to_numpy()[rows]
    places = {session: _place_of(session) for session in set(sessions)}
    if len(places) == 1:
        raise UserError(
            f"{index.source}: all {len(rows)} selected episodes are of the one recording session "
            f"{sessions[0]!r}, none can be held out; set data.selection.val_fraction=0"
        )
    held_out = {session for session, place in places.items() if place < val_fraction}
    if len(held_out) in (0, len(places)):
        held_out = {min(places, key=lambda session: places[session])}
    is_held_out = np.array([session in held_out for session in sessions])
    return rows[~is_held_out], rows[is_held_out]


def _place_of(session: str) -> float:
    """A session's fixed place in [0, 1)."""
    return int.from_bytes(hashlib.sha256(session.encode()).digest()[:8], "big") / 2**64
