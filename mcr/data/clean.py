"""Cleaning: rules (episode) -> reason, a report, and a quarantine.

`inspect_episode` collects the facts of one folder in a worker process. `RULES` are functions of
those facts; **a new rule is one function, added to that tuple.** `judge` runs them all on every
episode. Nothing is moved or deleted unless `quarantine` or `delete` is called.

Trees of upstream's script are judged like ours. Training does not need a cleaned tree, the index
gives its own verdicts; `scripts/delete_short_videos.py` is the caller.
"""

from __future__ import annotations

import csv
import errno
import functools
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mcr.data import pictures
from mcr.data.episode import FLAGS, LANGUAGES, OBSERVATIONS
from mcr.data.other_data import OTHER_DATA, read_other_data
from mcr.data.sources.tree import PARTIAL_PREFIX
from mcr.errors import UserError, require_choice
from mcr.runs.processes import process_pool, progress_bar

REQUIRED_KEYS = (*OBSERVATIONS, "action", "action_dict", "discount", *FLAGS)
_NO_FILE = (FileNotFoundError, IsADirectoryError)  # other errors (permissions, disk) end the run
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")

T = TypeVar("T", bound=Hashable)


# --------------------------------------------------------------------------- facts


@dataclass(frozen=True)
class CameraFolder:
    """One camera folder.

    num_frames: pictures whose name is a number
    gap:        what is wrong with the sequence 0, 1, ..., or ""
    size:       (height, width) of the first picture that could be read
    damage:     the first picture that cannot be decoded or has another size than that, or ""
    """

    num_frames: int
    gap: str
    size: tuple[int, int] | None
    damage: str


@dataclass(frozen=True)
class Facts:
    """What the rules may know of an episode.

    cameras:        camera -> CameraFolder
    instructions: the texts that are there
    unreadable:   why other_data.pkl cannot be read, or ""
    lengths:      key -> number of rows, of REQUIRED_KEYS that are there
    widths:       key -> numbers in a row; None where rows differ or hold no numbers
    not_finite:   keys with a NaN or an infinite value
    """

    name: str
    cameras: dict[str, CameraFolder]
    instructions: tuple[str, ...]
    unreadable: str
    lengths: dict[str, int]
    widths: dict[str, int | None]
    not_finite: tuple[str, ...]

    @property
    def num_frames(self) -> int:
        """Of the camera with the fewest; a training sample needs a picture of each."""
        return min((camera.num_frames for camera in self.cameras.values()), default=0)


@dataclass(frozen=True)
class Expected:
    """What an episode should be like: thresholds, and what most episodes of the tree are like.

    cameras:  cameras
    sizes:  camera -> (height, width)
    widths: see Facts
    """

    min_frames: int
    min_words: int
    cameras: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]
    widths: dict[str, int]


def inspect_episode(folder: Path, quick: bool = False) -> Facts:
    """Look at everything in an episode folder. `quick`: at both ends of a picture, not inside."""
    folders = {e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != "."}
    cameras = sorted(folders - set(LANGUAGES))
    try:
        data, unreadable = read_other_data(folder / OTHER_DATA), ""
    except _NO_FILE:
        data, unreadable = {}, f"{OTHER_DATA} is missing"
    except UserError as error:
        data, unreadable = {}, str(error).removeprefix(f"{folder}/")
    parts = {
        name: rows for key in REQUIRED_KEYS if key in data for name, rows in _parts(key, data[key])
    }
    arrays = {name: _stack(rows) for name, rows in parts.items()}
    return Facts(
        name=folder.name,
        cameras={camera: _inspect_camera(folder / camera, quick) for camera in cameras},
        instructions=tuple(_read_instructions(folder)),
        unreadable=unreadable,
        lengths={name: len(rows) for name, rows in parts.items()},
        widths={name: None if a is None else a.shape[1] for name, a in arrays.items()},
        not_finite=tuple(
            name for name, a in arrays.items() if a is not None and not np.isfinite(a).all()
        ),
    )


def _inspect_camera(folder: Path, quick: bool) -> CameraFolder:
    files = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    frames = {}
    strange = []
    for name in files:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in _PICTURE_SUFFIXES and stem.isdecimal() and int(stem) not in frames:
            frames[int(stem)] = folder / name
        else:
            strange.append(name)
    gap = f"{strange[0]} is no frame" if strange else ""
    missing = sorted(set(range(max(frames, default=-1) + 1)) - set(frames))
    if missing:
        gap = f"{len(missing)} frames are missing, the first is {missing[0]}"
    size, damage = None, ""
    for step, path in sorted(frames.items()):
        try:
            found = _picture_size(path.read_bytes(), quick)
        except (ValueError, *_NO_FILE) as error:
            damage = damage or f"frame {step}: {error}"
            continue
        size = size or found
        if found != size:
            damage = damage or f"frame {step} is {_show(found)}, not {_show(size)}"
    return CameraFolder(len(frames), gap, size, damage)


def _picture_size(data: bytes, quick: bool) -> tuple[int, int]:
    if quick:
        if not data.endswith((b"\xff\xd9", b"IEND\xaeB\x60\x82")):
            raise ValueError("a truncated picture")
        return pictures.size_of(data)
    height, width, _ = pictures.decode(data).shape
    return height, width


def _read_instructions(folder: Path) -> Iterable[str]:
    for key in LANGUAGES:
        path = folder / key / "0.txt"
        if path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def _parts(key: str, value: Any) -> Iterable[tuple[str, list[Any]]]:
    """The rows of a signal; of each of its parts if it is a list of dicts, like `action_dict`."""
    rows = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        yield key, rows
        return
    for name in sorted({name for row in rows for name in row}, key=str):
        yield f"{key}/{name}", [row[name] for row in rows if name in row]


def _stack(rows: list[Any]) -> np.ndarray | None:
    try:
        return np.array(rows, np.float64).reshape(len(rows), -1) if rows else None
    except (ValueError, TypeError):
        return None


def _show(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


# --------------------------------------------------------------------------- rules


def missing_camera(facts: Facts, expected: Expected) -> str | None:
    missing = sorted(set(expected.cameras) - set(facts.cameras))
    return f"no {', '.join(missing)}" if missing else None


def extra_camera(facts: Facts, expected: Expected) -> str | None:
    extra = sorted(set(facts.cameras) - set(expected.cameras))
    return f"also {', '.join(extra)}" if extra else None


def unequal_cameras(facts: Facts, expected: Expected) -> str | None:
    counts = {name: camera.num_frames for name, camera in facts.cameras.items()}
    if len(set(counts.values())) <= 1:
        return None
    return ", ".join(f"{name} has {count} frames" for name, count in counts.items())


def missing_frames(facts: Facts, expected: Expected) -> str | None:
    gaps = [f"{name}: {camera.gap}" for name, camera in facts.cameras.items() if camera.gap]
    return "; ".join(gaps) or None


def damaged_picture(facts: Facts, expected: Expected) -> str | None:
    damages = [
        f"{name}: {camera.damage}" for name, camera in facts.cameras.items() if camera.damage
    ]
    return "; ".join(damages) or None


def wrong_picture_size(facts: Facts, expected: Expected) -> str | None:
    """Of all of a camera, compared with most episodes; within a camera it is `damaged_picture`."""
    for name, camera in facts.cameras.items():
        usual = expected.sizes.get(name)
        if camera.size and usual and camera.size != usual:
            return f"{name} is {_show(camera.size)}, {_show(usual)} in most episodes"
    return None


def unreadable_data(facts: Facts, expected: Expected) -> str | None:
    return facts.unreadable or None


def missing_keys(facts: Facts, expected: Expected) -> str | None:
    present = {name.partition("/")[0] for name in facts.lengths}
    missing = [key for key in REQUIRED_KEYS if key not in present]
    return f"no {', '.join(missing)}" if missing and not facts.unreadable else None


def wrong_length(facts: Facts, expected: Expected) -> str | None:
    # Upstream: never compared.
    longest = max((camera.num_frames for camera in facts.cameras.values()), default=0)
    wrong = [f"{key} {n}" for key, n in facts.lengths.items() if n != longest]
    return f"rows for {longest} frames: {', '.join(wrong)}" if wrong else None


def wrong_dimensions(facts: Facts, expected: Expected) -> str | None:
    for key, width in facts.widths.items():
        if width is None:
            return f"{key}: rows of different sizes, or no numbers"
        if width != expected.widths[key]:
            return f"{key} has {width} numbers a row, {expected.widths[key]} in most episodes"
    return None


def not_finite(facts: Facts, expected: Expected) -> str | None:
    return f"NaN or infinite: {', '.join(facts.not_finite)}" if facts.not_finite else None


def too_short(facts: Facts, expected: Expected) -> str | None:
    frames = facts.num_frames
    return f"{frames} frames of {expected.min_frames}" if frames < expected.min_frames else None


def short_instruction(facts: Facts, expected: Expected) -> str | None:
    """Of the longest of up to three."""
    # Upstream: all three must exist, which halves the data although no loss reads them.
    words = max((len(text.split()) for text in facts.instructions), default=0)
    return f"{words} words of {expected.min_words}" if words < expected.min_words else None


Rule = Callable[[Facts, Expected], str | None]
RULES: tuple[Rule, ...] = (
    missing_camera,
    extra_camera,
    unequal_cameras,
    missing_frames,
    damaged_picture,
    wrong_picture_size,
    unreadable_data,
    missing_keys,
    wrong_length,
    wrong_dimensions,
    not_finite,
    too_short,
    short_instruction,
)


# --------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Verdict:
    """An episode and, by the name of each rule that it breaks, the reason."""

    facts: Facts
    reasons: dict[str, str]


@dataclass(frozen=True)
class Report:
    """`str()` shows it. `strays`: entries of the root that are no episode; they are let alone."""

    root: Path
    verdicts: list[Verdict]
    strays: list[str]
    expected: Expected

    @property
    def rejected(self) -> list[Path]:
        return [self.root / v.facts.name for v in self.verdicts if v.reasons]

    def __str__(self) -> str:
        counts = Counter(rule for verdict in self.verdicts for rule in verdict.reasons)
        names = [rule.__name__ for rule in RULES]
        lines = [f"{counts[name]:9,} {name.replace('_', ' ')}" for name in names if counts[name]]
        kept = len(self.verdicts) - len(self.rejected)
        lines.append(f"{len(self.rejected):9,} episodes break a rule, or several")
        lines.append(f"{kept:9,} of {len(self.verdicts):,} are fine")
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
        """One row per episode: name, verdict, frames, and the reason by each rule."""
        partial = path.with_name(f".{path.name}.partial")
        names = [rule.__name__ for rule in RULES]
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["episode", "verdict", "frames", *names])
            for verdict in self.verdicts:
                reasons = [verdict.reasons.get(name, "") for name in names]
                word = "reject" if verdict.reasons else "keep"
                writer.writerow([verdict.facts.name, word, verdict.facts.num_frames, *reasons])
        partial.replace(path)


def report(
    root: str | Path,
    min_frames: int = 40,
    min_words: int = 2,
    cameras: tuple[str, ...] | None = None,
    quick: bool = False,
    workers: int | None = None,
) -> Report:
    """Inspect and judge every episode of a tree. Changes nothing.

    min_frames: of the camera with the fewest
    min_words:  of the longest instruction; 0 asks for none
    cameras:      cameras that an episode must have, no more and no less; those of most if None
    quick:      do not decode the pictures
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the root of an extracted tree")
    folders, strays = _list_episodes(root)
    if not folders:
        raise UserError(f"{root}: holds no episode; give the root of an extracted tree")
    facts = _inspect_all(folders, quick, workers)
    for camera in cameras or ():
        require_choice("--cameras", camera, {name for f in facts for name in f.cameras})
    expected = expect(facts, min_frames, min_words, cameras)
    return Report(root, [judge(f, expected) for f in facts], strays, expected)


def expect(
    facts: list[Facts], min_frames: int, min_words: int, cameras: tuple[str, ...] | None
) -> Expected:
    """The thresholds, and what most episodes are like. `cameras`: those of most if None."""
    sizes: dict[str, list[tuple[int, int]]] = {}
    widths: dict[str, list[int]] = {}
    for f in facts:
        for name, camera in f.cameras.items():
            sizes.setdefault(name, []).extend([camera.size] if camera.size else [])
        for key, width in f.widths.items():
            widths.setdefault(key, []).extend([width] if width is not None else [])
    usual_cameras = [tuple(f.cameras) for f in facts if f.cameras]
    return Expected(
        min_frames=min_frames,
        min_words=min_words,
        cameras=cameras or (_most_common(usual_cameras) if usual_cameras else ()),
        sizes={name: _most_common(found) for name, found in sizes.items() if found},
        widths={key: _most_common(found) for key, found in widths.items() if found},
    )


def judge(facts: Facts, expected: Expected) -> Verdict:
    """Run every rule."""
    reasons = {rule.__name__: rule(facts, expected) for rule in RULES}
    return Verdict(facts, {name: reason for name, reason in reasons.items() if reason})


def _list_episodes(root: Path) -> tuple[list[Path], list[str]]:
    folders, strays = [], []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir() or not _looks_like_episode(entry):
            strays.append(entry.name)
        else:
            folders.append(entry)
    return folders, strays


def _looks_like_episode(folder: Path) -> bool:
    """Empty, or holding anything that episodes hold. Nothing else is judged, let alone deleted."""
    entries = list(folder.iterdir())
    known = any(entry.name in (OTHER_DATA, *LANGUAGES) for entry in entries)
    return known or not entries or any(_looks_like_camera(entry) for entry in entries)


def _looks_like_camera(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    some = itertools.islice(folder.iterdir(), 3)
    return any(file.stem.isdecimal() and file.suffix in _PICTURE_SUFFIXES for file in some)


def _inspect_all(folders: list[Path], quick: bool, workers: int | None) -> list[Facts]:
    with process_pool(workers) as pool:
        found = pool.map(functools.partial(inspect_episode, quick=quick), folders, chunksize=4)
        return list(progress_bar(found, "inspecting", "episode", len(folders)))


def _most_common(values: list[T]) -> T:
    return Counter(values).most_common(1)[0][0]


# --------------------------------------------------------------------------- acting on it


def quarantine(folders: list[Path], destination: str | Path) -> None:
    """Move episodes to `destination`, never over anything that is there.

    Across file systems an episode is copied whole before it leaves its old place.
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
        partial = target.with_name(f"{PARTIAL_PREFIX}{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial, symlinks=True)
        partial.rename(target)
        delete([folder])


def delete(folders: list[Path]) -> None:
    """Delete episodes. A kill leaves hidden remains, never a half episode under its name."""
    for folder in folders:
        if folder.is_symlink():
            folder.unlink()
            continue
        doomed = folder.with_name(f"{PARTIAL_PREFIX}{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        shutil.rmtree(folder.rename(doomed))
