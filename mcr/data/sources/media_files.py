"""Finds the episodes among videos and folders of pictures; `media.py` explains the layouts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mcr.data.hdf5 import natural_order
from mcr.data.sources import video

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
TABLE_SUFFIXES = (".csv", ".parquet")
_TABLE_OF_FOLDER = "signals"


@dataclass(frozen=True)
class Recording:
    """The files of one episode, relative to the root.

    key:     the path of the video or of the folder
    name:    `key`, without the suffix of a video if that leaves names different
    cameras: name -> video, or folder of pictures
    tables:  its tables; more than one is an error
    """

    key: str
    name: str
    cameras: dict[str, str]
    tables: tuple[str, ...]


def is_video(name: str) -> bool:
    return name.lower().endswith(video.SUFFIXES)


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES)


def is_medium(name: str) -> bool:
    return is_video(name) or is_picture(name)


def is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_SUFFIXES)


def walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder, relative to `path`, with the names of the files in it, but hidden ones.

    A file is yielded as the folder "." that holds it and its tables.
    """
    if path.is_file():
        tables = [f"{path.stem}{suffix}" for suffix in TABLE_SUFFIXES]
        yield ".", [path.name, *(name for name in tables if path.with_name(name).is_file())]
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(path).as_posix()
        yield relative, sorted(name for name in names if not name.startswith("."))


def find_recordings(path: Path) -> list[Recording]:
    """Return the episodes below a folder, or the one of a file, in natural order."""
    listing = dict(walk(path))
    recordings = [
        _folder(folder, names, listing)
        for folder, names in listing.items()
        if _has_table(names) and path.is_dir()
    ]
    taken = {place for r in recordings for place in (r.key, *r.cameras.values())}
    videos = {
        _join(folder, name)
        for folder, names in listing.items()
        if folder not in taken
        for name in names
        if is_video(name)
    }
    found = dict.fromkeys(videos, "video")
    if not found:
        holding = (folder for folder, names in listing.items() if any(map(is_picture, names)))
        found = {folder: "picture" for folder in holding if folder not in taken}
    for place, camera in found.items():
        tables = _tables_beside(place, listing)
        recordings.append(Recording(place, "", {camera: place}, tables))
    recordings.sort(key=lambda recording: natural_order(recording.key))
    return _named(recordings, path)


def _has_table(names: list[str]) -> bool:
    """Does a folder have a table of its own, one that does not belong to a video "signals"?"""
    stems = {PurePosixPath(name).stem for name in names if is_video(name)}
    return _TABLE_OF_FOLDER not in stems and any(_is_own_table(name) for name in names)


def _is_own_table(name: str) -> bool:
    return is_table(name) and PurePosixPath(name).stem == _TABLE_OF_FOLDER


def _folder(folder: str, names: list[str], listing: dict[str, list[str]]) -> Recording:
    """Return the episode that a folder with a table is."""
    videos = [name for name in names if is_video(name)]
    stems = Counter(PurePosixPath(name).stem for name in videos)
    cameras = {
        stem if stems[stem] == 1 else name: _join(folder, name)
        for name in sorted(videos, key=natural_order)
        for stem in [PurePosixPath(name).stem]
    }
    for below in sorted(listing, key=natural_order):
        place = PurePosixPath(below)
        is_below = below != "." and place.parent.as_posix() == folder
        if is_below and any(map(is_picture, listing[below])):
            cameras.setdefault(place.name, below)
    if not cameras and any(map(is_picture, names)):
        cameras["picture"] = folder
    tables = tuple(_join(folder, name) for name in names if _is_own_table(name))
    return Recording(folder, "", cameras, tables)


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _tables_beside(place: str, listing: dict[str, list[str]]) -> tuple[str, ...]:
    """Return the tables of a video or folder: they lie beside it and have its name."""
    path = PurePosixPath(place)
    folder = path.parent.as_posix()
    stem = path.stem if is_video(place) else path.name
    wanted = {f"{stem}{suffix}" for suffix in TABLE_SUFFIXES}
    return tuple(_join(folder, name) for name in listing.get(folder, ()) if name in wanted)


def _named(recordings: list[Recording], path: Path) -> list[Recording]:
    """Name the episodes by their paths, without suffixes if that leaves the names different."""
    short = [
        r.key[: -len(PurePosixPath(r.key).suffix)] if is_video(r.key) else r.key for r in recordings
    ]
    names = short if len(set(short)) == len(short) else [r.key for r in recordings]
    return [
        replace(r, name=path.resolve().name if name == "." else name)
        for r, name in zip(recordings, names, strict=True)
    ]
