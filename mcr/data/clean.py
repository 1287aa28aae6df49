"""Cleaning: judge every episode of a tree, report, and move or delete what is rejected.

`clean_facts.py` looks at an episode, `clean_rules.py` says what is wrong with it. Nothing is moved
or deleted unless `quarantine` or `delete` is called. `mcr clean` calls them.

Trees of upstream's script are judged like ours. Training also takes a tree that was not cleaned:
the index leaves out episodes whose files do not fit together, and filters of the recipe choose
among the others. Only cleaning decodes every picture.
"""

from __future__ import annotations

import csv
import errno
import functools
import itertools
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mcr.data.clean_facts import Facts, inspect_episode, lost_episode
from mcr.data.clean_rules import RULES, Expected, expect
from mcr.data.other_data import OTHER_DATA
from mcr.data.schema import LANGUAGES
from mcr.data.sources.tree import TreeSource
from mcr.data.sources.tree_episode import is_picture
from mcr.data.tree_writing import PARTIAL_PREFIX
from mcr.errors import UserError, require_choice
from mcr.runs.atomic import atomic_path, remove
from mcr.runs.locks import LOCK_NAME
from mcr.runs.processes import KILLED, process_pool, progress_bar

_LEAST_FRAMES = 3  # what the sampling rule needs


@dataclass(frozen=True)
class Finding:
    """An episode, and the reason of each rule that it breaks, by the rule's name."""

    facts: Facts
    reasons: dict[str, str]


@dataclass(frozen=True)
class Report:
    """The findings about a tree. `str()` gives the report that the script prints.

    strays: entries of the root that are no episodes and are left alone
    """

    root: Path
    findings: list[Finding]
    strays: list[str]
    expected: Expected

    @property
    def rejected(self) -> list[Path]:
        """Folders of the episodes that break a rule."""
        return [self.root / found.facts.name for found in self.findings if found.reasons]

    def __str__(self) -> str:
        counts = Counter(rule for found in self.findings for rule in found.reasons)
        names = [rule.__name__ for rule in RULES]
        lines = [f"{counts[name]:9,} {name.replace('_', ' ')}" for name in names if counts[name]]
        kept = len(self.findings) - len(self.rejected)
        lines.append(f"{len(self.rejected):9,} episodes break a rule, or several")
        lines.append(f"{kept:9,} of {len(self.findings):,} are fine")
        lines.append(f"cameras expected: {', '.join(self.expected.cameras) or 'none'}")
        partial = sum(name.startswith(PARTIAL_PREFIX) for name in self.strays)
        if partial:
            lines.append(f"note: {partial} folders of an extraction at work or killed are ignored")
        strays = [name for name in self.strays if not name.startswith(PARTIAL_PREFIX)]
        if strays:
            names = [*strays[:5], *["..."] * (len(strays) > 5)]
            lines.append(f"note: {len(strays)} entries are no episodes: {', '.join(names)}")
        return "\n".join(lines)

    def write_csv(self, path: Path) -> None:
        """Write a row per episode: name, "keep" or "reject", frames, and a reason per rule."""
        names = [rule.__name__ for rule in RULES]
        with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["episode", "verdict", "frames", *names])
            for found in self.findings:
                reasons = [found.reasons.get(name, "") for name in names]
                word = "reject" if found.reasons else "keep"
                writer.writerow([found.facts.name, word, found.facts.num_frames, *reasons])


def report(
    root: str | Path,
    min_frames: int | None = None,
    min_words: int = 0,
    cameras: tuple[str, ...] | None = None,
    quick: bool = False,
    workers: int | None = None,
) -> Report:
    """Inspect and judge every episode of a tree. This changes nothing on disk.

    min_frames: frames that the camera with the fewest must have; None = what training asks for, by
                the schema of the tree: 40 for DROID, else what a clip needs
    min_words:  words that the longest instruction must have; 0 accepts episodes without language
    cameras:    cameras that an episode must have, no more and no less; None = those of most
    quick:      do not decode the pictures
    workers:    processes; None = one per core

    Raises UserError if `root` holds no episode, or none has one of `cameras`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the root of an extracted tree")
    folders, strays = _list_episodes(root)
    if not folders:
        raise UserError(f"{root}: holds no episode; give the root of an extracted tree")
    with process_pool(workers) as pool:
        inspect = functools.partial(inspect_episode, quick=quick)
        found = pool.map(inspect, folders, lambda pool, folder: lost_episode(folder, KILLED))
        facts = list(progress_bar(found, "inspecting", "episode", len(folders)))
    for camera in cameras or ():
        require_choice("--cameras", camera, {name for f in facts for name in f.cameras})
    if min_frames is None:
        min_frames = max(_LEAST_FRAMES, int(TreeSource(root).schema.min_frames))
    expected = expect(facts, min_frames, min_words, cameras)
    return Report(root, [judge(f, expected) for f in facts], strays, expected)


def judge(facts: Facts, expected: Expected) -> Finding:
    """Apply every rule to an episode."""
    reasons = {rule.__name__: rule(facts, expected) for rule in RULES}
    return Finding(facts, {name: reason for name, reason in reasons.items() if reason})


def _list_episodes(root: Path) -> tuple[list[Path], list[str]]:
    folders, strays = [], []
    for entry in sorted(path for path in root.iterdir() if path.name != LOCK_NAME):
        if entry.name.startswith(".") or not entry.is_dir() or not _looks_like_episode(entry):
            strays.append(entry.name)
        else:
            folders.append(entry)
    return folders, strays


def _looks_like_episode(folder: Path) -> bool:
    """Is the folder empty, or does it hold anything that episodes hold? No other is deleted."""
    entries = list(folder.iterdir())
    known = any(entry.name in (OTHER_DATA, *LANGUAGES) for entry in entries)
    return known or not entries or any(_looks_like_camera(entry) for entry in entries)


def _looks_like_camera(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    some = itertools.islice(folder.iterdir(), 3)
    return any(file.stem.isdecimal() and is_picture(file.name) for file in some)


# --------------------------------------------------------------------------- acting on it


def quarantine(folders: list[Path], destination: str | Path) -> None:
    """Move episodes to the folder `destination`.

    On another file system an episode is copied completely before it is deleted here. Raises
    UserError before anything is moved if `destination` lies in the tree or has such an episode.
    """
    destination = Path(destination)
    for folder in folders:
        if destination.resolve().is_relative_to(folder.parent.resolve()):
            raise UserError(f"--quarantine {destination}: choose a folder outside the tree")
        if os.path.lexists(destination / folder.name):
            raise UserError(f"{destination / folder.name} exists; choose another --quarantine")
    destination.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        _move(folder, destination / folder.name)


def _move(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_path(target) as partial:
            shutil.copytree(folder, partial, symlinks=True)
        delete([folder])


def delete(folders: list[Path]) -> None:
    """Delete episodes. A process that is killed here leaves hidden remains, but no half episode."""
    for folder in folders:
        if folder.is_symlink():
            folder.unlink()
            continue
        doomed = folder.with_name(f"{PARTIAL_PREFIX}{folder.name}")
        remove(doomed)
        remove(folder.rename(doomed))
