"""Episode: what a robot recorded in one go, in memory, and how it is named.

`droid.py` makes episodes from RLDS records. `sources/tree.py` writes them as folders of PNGs and
reads those back. This file knows neither format.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

LANGUAGES = ("language_instruction", "language_instruction_2", "language_instruction_3")
OBSERVATIONS = ("cartesian_position", "gripper_position", "joint_position")
FLAGS = ("is_first", "is_last", "is_terminal")

Ranges = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    payload:       the bytes that hold the encoded pictures
    frame_ranges:  camera -> (start, length) of each of its T pictures in `payload`, int64 [T]
    signals:       "cartesian_position", "action", "action_dict/joint_velocity", ... -> float32
                   [T, D]; "discount", "reward" -> float32 [T]; "is_first", ... -> bool [T]
    languages:     "language_instruction{,_2,_3}" -> text, which may be empty
    file_path:     path of the original recording, as the data set states it; it is not trusted
    """

    payload: bytes
    frame_ranges: dict[str, Ranges]
    signals: dict[str, np.ndarray]
    languages: dict[str, str]
    file_path: str
    recording_folderpath: str = ""

    @property
    def length(self) -> int:
        """T, the number of steps."""
        return len(self.signals["action"])

    def encoded_frame(self, camera: str, step: int) -> memoryview:
        """Return the stored picture (JPEG or PNG bytes) of `camera` at `step` without a copy."""
        starts, lengths = self.frame_ranges[camera]
        start = int(starts[step])
        return memoryview(self.payload)[start : start + int(lengths[step])]

    @property
    def origin(self) -> Origin:
        """What `file_path` says. Raises ValueError if the path is unsafe."""
        return Origin.parse(self.file_path)


@dataclass(frozen=True)
class Origin:
    """What a DROID `file_path` says: <prefix>/<lab>/<outcome>/<date>/<recording>/trajectory.h5."""

    lab: str
    outcome: str  # "success", "failure", or "" if the path does not say
    date: str
    recording: str

    @classmethod
    def parse(cls, file_path: str) -> Origin:
        """Split an untrusted path. Raises ValueError if its name could leave the tree's root."""
        parts = file_path.replace("\\", "/").split("/")
        if len(parts) < 3:
            raise ValueError(f"file_path {file_path!r} has fewer than three components")
        date, recording = parts[-3], parts[-2]
        for part in (date, recording):
            if part in ("", ".", "..") or part.startswith(".") or not part.isprintable():
                raise ValueError(f"file_path {file_path!r} has an unsafe component {part!r}")
        if len(f"{date}_{recording}".encode()) > 200:
            raise ValueError(f"file_path {file_path!r} makes a folder name of over 200 bytes")
        lab, outcome = ([""] * 2 + parts)[-5:-3]
        return cls(lab, outcome if outcome in ("success", "failure") else "", date, recording)

    @property
    def name(self) -> str:
        """Folder name of the episode. It has "_" for ":", which some file systems forbid."""
        return f"{self.date}_{self.recording}".replace(":", "_")

    @property
    def session(self) -> str:
        """One lab on one day. Its scenes and lights hardly change, so a split must not cut it."""
        return f"{self.lab}/{self.date}"


def unique_names(file_paths: list[str]) -> list[str]:
    """Return a unique folder name for each episode of a data set, in order.

    A name is the two components before `trajectory.h5`. Episodes that share a name (two labs
    recorded in the same second) get their lab appended, and a counter if the lab is the same too.
    Upstream: the second episode of a name was silently dropped.

    The result is a pure function of the whole list, so any split of the work gives the same names.
    A path that cannot be used gets an empty name. Its record is reported when it is read.
    """
    origins = [_origin_or_none(path) for path in file_paths]
    names = [origin.name if origin else "" for origin in origins]
    for positions in _sharing(names):
        for position in positions:
            names[position] = _with_lab(names[position], origins[position])
    taken = {name.casefold() for name in names}
    for positions in _sharing(names):
        for position in positions[1:]:
            names[position] = _with_counter(names[position], taken)
    return names


def _sharing(names: list[str]) -> list[list[int]]:
    """Group the positions whose names are equal on a file system that ignores case."""
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        if name:
            groups.setdefault(name.casefold(), []).append(position)
    return [positions for positions in groups.values() if len(positions) > 1]


def _origin_or_none(file_path: str) -> Origin | None:
    try:
        return Origin.parse(file_path)
    except ValueError:
        return None


def _with_lab(name: str, origin: Origin | None) -> str:
    lab = origin.lab if origin else ""
    return f"{name}_{lab}" if lab.isalnum() and len(lab.encode()) <= 40 else name


def _with_counter(name: str, taken: set[str]) -> str:
    """Return the first of `name_2`, `name_3`, ... that is not taken, and add it to `taken`."""
    numbered = (f"{name}_{count}" for count in itertools.count(2))
    free = next(candidate for candidate in numbered if candidate.casefold() not in taken)
    taken.add(free.casefold())
    return free
