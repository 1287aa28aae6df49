"""Episode: what a robot recorded in one go, as every source hands it out, and how it is named.

The sources make episodes, `indexing.py` turns them into the index, extraction writes them as
folders. This file knows no format.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

import numpy as np

from mcr.data.schema import RecordingSchema

FLAGS = ("is_first", "is_last", "is_terminal")


@dataclass(frozen=True)
class Pictures:
    """The T frames of one camera in one episode.

    size:     (height, width)
    checksum: of the stored pictures; another one if a picture is replaced
    file:     where the JPEG or PNG bytes of the frames lie, relative to the source's root: a file
              that holds them all, or, with `names`, a folder. "" if the format stores no such bytes
    offsets, lengths: int64 [T], int32 [T], the byte ranges in `file`
    names:    names of the files in the folder `file`, in time order; they replace the ranges
    """

    size: tuple[int, int]
    checksum: int
    file: str = ""
    offsets: np.ndarray | None = None
    lengths: np.ndarray | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

    key:      how its source finds it again: "train-00003/17", "data/demo_3", "12"
    length:   T
    signals:  name -> float32 [T, D] or [T]; FLAGS -> bool [T]
    pictures: camera -> its frames; a camera that the episode lacks is absent
    texts:    instructions in the order of `Schema.language`; missing ones are ""
    origin:   name, session, lab, ...
    payload:  RLDS: the record, in which the byte ranges of pictures lie
    payload_offset: RLDS: where the record begins in its file
    """

    key: str
    length: int
    signals: dict[str, np.ndarray]
    pictures: dict[str, Pictures]
    texts: tuple[str, ...]
    origin: Origin
    payload: bytes = field(default=b"", repr=False)
    payload_offset: int = 0

    def encoded_frame(self, camera: str, step: int) -> memoryview:
        """Return the stored picture of `camera` at `step` from the payload, without a copy."""
        pictures = self.pictures[camera]
        assert pictures.offsets is not None and pictures.lengths is not None
        start = int(pictures.offsets[step]) - self.payload_offset
        return memoryview(self.payload)[start : start + int(pictures.lengths[step])]


@dataclass(frozen=True)
class Origin:
    """Where an episode comes from. Empty texts are unknown.

    name:      wanted folder name; two episodes may want the same one, see `unique_names`
    session:   what recordings of one sitting share; a validation split must not cut it
    outcome:   "success", "failure" or ""
    split:     "train", "val", ...: what the data set itself calls the part
    file_path: path of the original recording, as the data set states it; it is not trusted
    """

    name: str
    session: str = ""
    lab: str = ""
    outcome: str = ""
    date: str = ""
    split: str = ""
    file_path: str = ""

    @classmethod
    def of(cls, schema: RecordingSchema, file_path: str, fallback: str, split: str = "") -> Origin:
        """Read an untrusted path.

        fallback: name and session if the path does not tell them

        Raises ValueError if the name could leave a tree's root.
        """
        path = file_path.replace("\\", "/")
        match = re.search(schema.pattern, path) if schema.pattern and path else None
        groups = {k: v or "" for k, v in match.groupdict().items()} if match else {}
        name = schema.name.format_map(groups) if match and schema.name else groups.get("name", "")
        session = (
            schema.session.format_map(groups)
            if match and schema.session
            else groups.get("session", "")
        )
        name = safe_name(name or fallback, file_path)
        outcome = groups.get("outcome", "")
        return cls(
            name=name,
            session=session or name,
            lab=groups.get("lab", ""),
            outcome=outcome if outcome in ("success", "failure") else "",
            date=groups.get("date", ""),
            split=split,
            file_path=file_path,
        )


def safe_name(name: str, source: str = "") -> str:
    """Return a folder name with "_" for ":" and "/", which file systems forbid.

    source: what the name was made of, for the message

    Raises ValueError if the name is hidden, not printable, too long, or leaves the root.
    """
    about = f" of {source!r}" if source and source != name else ""
    parts = name.split("/")
    for part in parts:
        if part in ("", ".", "..") or part.startswith(".") or not part.isprintable():
            raise ValueError(f"the name {name!r}{about} has an unsafe component {part!r}")
    if len(name.encode()) > 200:
        raise ValueError(f"the name {name[:40]!r}...{about} has over 200 bytes")
    return "_".join(parts).replace(":", "_")


def unique_names(origins: list[Origin | None]) -> list[str]:
    """Return a unique folder name for each episode of a data set, in order.

    Episodes that want the same name (two labs recorded in the same second) get their lab appended,
    and a counter if the lab is the same too. The result is a pure function of the whole list, so
    any split of the work gives the same names. Where there is no origin, the name is "".

    Upstream: the second episode of a name was silently dropped.
    """
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


def _with_lab(name: str, origin: Origin | None) -> str:
    lab = origin.lab if origin else ""
    return f"{name}_{lab}" if lab.isalnum() and len(lab.encode()) <= 40 else name


def _with_counter(name: str, taken: set[str]) -> str:
    """Return the first of `name_2`, `name_3`, ... that is not taken, and add it to `taken`."""
    numbered = (f"{name}_{count}" for count in itertools.count(2))
    free = next(candidate for candidate in numbered if candidate.casefold() not in taken)
    taken.add(free.casefold())
    return free
