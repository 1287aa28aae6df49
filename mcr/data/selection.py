"""Selection: which episodes of an index, and which of their steps, a recipe trains on or holds out.

A filter is an option of the recipe and changes no file. The split is by session because episodes of
a session share scene, light and camera pose, which would leak into the validation. `idle.py` finds
idle steps and reads files of ranges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from mcr.data.idle import kept_steps, listed_steps, moving_steps
from mcr.data.index import Index
from mcr.data.sampling import KeptSteps
from mcr.errors import UserError, require_choice
from mcr.runs.ranges import ANY_TEXT, NAMES, check_fields, choice, number, whole


@dataclass
class SelectionConfig:
    """Which episodes to use, and which of their steps.

    labs:         labs to use; [] = all
    episodes:     names of the episodes to use; an entry that ends in .txt is a file with a name per
                  line; [] = all. Names that the data lacks are counted and cause no error.
    keep_ranges:  a JSON file as openpi publishes for DROID. Only the steps that it lists may be
                  drawn, and episodes that it does not name are left out. "" = no file
    idle:         "keep" idle steps, or "drop" them by openpi's rule
    idle_change:  with "drop": a step is idle if all joints' commanded velocities change by less
    idle_steps:   with "drop": at least so many idle steps in sequence are dropped
    min_frames:   episodes with fewer steps that may be drawn are left out; 0 = what the schema says
                  (DROID's: the paper's 40), or the 3 that a clip needs
    outcome:      "any", or "success" to leave out failures (if the data set names them)
    language:     how many of its instructions (DROID: three) an episode must have: "none", "any" or
                  "all". The losses never read language, and the paper's filter "all" halves DROID.
    min_words:    with language any/all: shorter instructions do not count; upstream: 2
    val_fraction: share of the sessions that is held out, 0 for none. If all episodes are of one
                  session, none is held out.
    """

    labs: Annotated[list[str], NAMES] = field(default_factory=list)
    episodes: Annotated[list[str], NAMES] = field(default_factory=list)
    keep_ranges: Annotated[str, ANY_TEXT] = ""
    idle: Annotated[str, choice(("keep", "drop"))] = "keep"
    idle_change: Annotated[float, number(least=0)] = 1e-3
    idle_steps: Annotated[int, whole(1)] = 7
    min_frames: Annotated[int, whole(0)] = 0
    outcome: Annotated[str, choice(("any", "success"))] = "any"
    language: Annotated[str, choice(("none", "any", "all"))] = "none"
    min_words: Annotated[int, whole(0)] = 2
    val_fraction: Annotated[float, number(least=0, below=1)] = 0.05

    def __post_init__(self) -> None:
        check_fields(self, "data.selection.")


@dataclass(frozen=True)
class Episodes:
    """Episodes of an index to draw clips from.

    rows: int64 [n]
    kept: which of their steps may be drawn; None = all. A loader process needs 12 bytes for each
          kept range of the data set and 32 for each episode, a few MB for DROID.
    """

    rows: np.ndarray
    kept: KeptSteps | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, positions: np.ndarray) -> Episodes:
        """Return some of the episodes. `positions` is a NumPy index array of int or bool."""
        kept = self.kept.of(np.arange(len(self))[positions]) if self.kept else None
        return Episodes(self.rows[positions], kept)


def select_episodes(index: Index, config: SelectionConfig) -> tuple[Episodes, list[str]]:
    """Return the episodes that pass all filters, in the order of the index, and a report.

    The report has a line per filter with what it left. Raises UserError if a filter leaves
    nothing.
    """
    table = index.table
    lengths = table["length"].to_numpy()
    keep = np.ones(len(table), bool)
    report = [_count("all", keep, lengths)]
    kept, mask = None, np.array(True)
    for name, passes in _step_filters(index, config):
        mask = mask & passes
        kept = kept_steps(index, mask)
        lengths = kept.lengths
        keep = lengths > 0
        _add(report, index, name, keep, lengths)
    config = replace(config, min_frames=config.min_frames or least_frames(index))
    for name, passes in _episode_filters(index, lengths, config):
        keep = keep & passes
        _add(report, index, name, keep, lengths)
    rows = np.flatnonzero(keep)
    return Episodes(rows, kept.of(rows) if kept else None), report


def _step_filters(index: Index, config: SelectionConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each filter's name, and the steps that pass it, bool [total_steps]."""
    if config.keep_ranges:
        steps, found = listed_steps(index, config.keep_ranges)
        yield f"keep_ranges={config.keep_ranges} ({found})", steps
    if config.idle == "drop":
        yield "idle=drop", moving_steps(index, config.idle_change, config.idle_steps)


_LEAST_FRAMES = 3  # the sampling rule needs them: MIDDLE is drawn from 2 .. T-1


def least_frames(index: Index) -> int:
    """Return how many steps an episode must have if a recipe does not say it."""
    return max(_LEAST_FRAMES, int(index.schema.min_frames))


def _episode_filters(
    index: Index, lengths: np.ndarray, config: SelectionConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each filter's name, and the episodes that pass it, bool [N].

    lengths: number of steps that may be drawn, int64 [N]
    """
    table = index.table
    least = max(_LEAST_FRAMES, config.min_frames)
    yield f"min_frames={config.min_frames}", lengths >= least
    if config.labs:
        for lab in config.labs:
            require_choice("data.selection.labs", lab, set(table["lab"]))
        yield f"labs={','.join(config.labs)}", table["lab"].isin(config.labs).to_numpy()
    if config.episodes:
        names = _episode_names(config.episodes)
        num_lacking = len(names - set(table["name"]))
        passes = table["name"].isin(names).to_numpy()
        yield f"episodes ({len(names)} named, {num_lacking} of them not in the data)", passes
    if config.outcome == "success":
        yield "outcome=success", (table["outcome"] == "success").to_numpy()
    if config.language != "none":
        if not index.languages:
            raise UserError(
                f"{index.source}: has no instructions, so data.selection.language="
                f"{config.language} would leave out all episodes; use none"
            )
        least_words = max(1, config.min_words)
        texts = [table[key].str.split().str.len() >= least_words for key in index.languages]
        combine = np.all if config.language == "all" else np.any
        yield f"language={config.language}", combine(texts, axis=0)


def _episode_names(entries: list[str]) -> set[str]:
    """Return the names, with those in .txt files. Raises UserError for an unreadable file."""
    names: set[str] = set()
    for entry in entries:
        if entry.endswith(".txt"):
            try:
                lines = Path(entry).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"data.selection.episodes: {entry}: {error}") from error
            names |= {line.strip() for line in lines if line.strip()}
        else:
            names.add(entry)
    return names


def _count(name: str, keep: np.ndarray, lengths: np.ndarray) -> str:
    return f"{name}: {keep.sum()} episodes, {lengths[keep].sum()} frames"


def _add(report: list[str], index: Index, name: str, keep: np.ndarray, lengths: np.ndarray) -> None:
    """Add a filter to the report. Raises UserError if it left nothing."""
    report.append(_count(name, keep, lengths))
    if not keep.any():
        raise UserError(
            f"{index.source}: no episode is left by the filter {name}: {'; '.join(report)}"
        )


def split_sessions(
    index: Index, episodes: Episodes, val_fraction: float
) -> tuple[Episodes, Episodes]:
    """Split by session. Return (episodes to train on, held-out episodes).

    A session is held out if the hash of its name is below `val_fraction`. The hash depends only on
    the name, so added data moves no episode. If this holds out no session, or all of them, only the
    session with the lowest hash is held out. If there is only one session, none is.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"data.selection.val_fraction={val_fraction} must lie in [0, 1)")
    sessions = index.table["session"].to_numpy()[episodes.rows]
    places = {session: _place_of(session) for session in set(sessions)}
    if val_fraction == 0 or len(places) == 1:
        return episodes, episodes.of(np.arange(0))
    held_out = {session for session, place in places.items() if place < val_fraction}
    if len(held_out) in (0, len(places)):
        held_out = {min(places, key=lambda session: places[session])}
    is_held_out = np.array([session in held_out for session in sessions])
    return episodes.of(~is_held_out), episodes.of(is_held_out)


def _place_of(session: str) -> float:
    """Hash a session's name to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(session.encode()).digest()[:8], "big") / 2**64
