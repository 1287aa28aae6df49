"""HDF5: one file, or a folder of files, each with one episode or with many.

    data/<demo>/obs/<camera>, <signal>, actions                robomimic, LIBERO: many per file
    observations/images/<camera>, observations/qpos, action    ALOHA: a file per episode

Any other layout is read by a schema, whose keys are paths inside the group of an episode. Pictures
are uint8 [T, H, W, 3], compressed or not, or the bytes of JPEG or PNG files. `hdf5_layout.py` finds
episodes, pictures, numbers and texts. Needs the extra `hdf5`.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import google_crc32c

from mcr.data import hdf5
from mcr.data.episode import Episode, Origin, Pictures
from mcr.data.hdf5 import natural_order, open_hdf5
from mcr.data.regular_files import status
from mcr.data.schema import LANGUAGES, Schema, names_of
from mcr.data.sources import hdf5_layout as layout
from mcr.data.sources.hdf5_frames import Hdf5Decoder, episode_cameras
from mcr.data.sources.schema_check import Keys, choose_schema
from mcr.data.sources.source import DAMAGE, WORTH_PROCESSES, sentence
from mcr.errors import UserError

if TYPE_CHECKING:
    import h5py

_EPISODES_PER_PART = 16
_BLOCK = 2**22


class Hdf5Source:
    """An HDF5 file, or the HDF5 files of a folder. Its parts are some episodes of a file each."""

    kind: ClassVar = "hdf5"
    unit: ClassVar = "B"

    def __init__(self, path: Path, schema: Schema | None = None):
        self.path = path
        self.root = path if path.is_dir() else path.parent
        self.name = path.resolve().name if path.is_dir() else path.resolve().stem
        self._files = _list_files(path)
        self.schema, self.cameras = _choose(path, self.root, self._files, self.name, schema)

    @staticmethod
    def recognises(path: Path) -> bool:
        if path.is_dir():
            return any(_is_hdf5(entry) for entry in path.iterdir())
        return path.is_file() and _is_hdf5(path)

    def parts(self) -> list[Episodes]:
        """A part per file; of a single file, some of its episodes."""
        common: dict[str, Any] = {
            "root": self.root,
            "schema": self.schema,
            "is_alone": len(self._files) == 1,
        }
        if len(self._files) > 1:
            return [Episodes(file=name, size=size, **common) for name, size in self._sizes()]
        (file, size), step = self._sizes()[0], _EPISODES_PER_PART
        try:
            with open_hdf5(self.root / file) as opened:
                groups = _find_episodes(self.root / file, opened)
        except UserError:  # its only part will say so
            groups = []
        starts = range(0, max(1, len(groups)), step)
        checksum = None if len(starts) == 1 else _checksum(self.root / file)
        return [
            Episodes(
                file=file,
                size=size // len(starts),
                groups=tuple(groups[i : i + step]) or None,
                checksum=checksum,
                **common,
            )
            for i in starts
        ]

    def _sizes(self) -> list[tuple[str, int]]:
        return [(name, status(self.root / name).st_size) for name in self._files]

    def is_small(self) -> bool:
        return sum(size for _, size in self._sizes()) < WORTH_PROCESSES

    def stamp(self) -> dict[str, int]:
        """Sizes and dates: a file can be changed in place."""
        statuses = {name: status(self.root / name) for name in self._files}
        lines = (f"{name} {s.st_size} {s.st_mtime_ns}\n" for name, s in statuses.items())
        checksum = google_crc32c.value("".join(lines).encode("utf-8", "surrogateescape"))
        return {"files": checksum, "bytes": sum(s.st_size for s in statuses.values())}

    def lacks(self) -> list[str]:
        return []

    def decoder(self) -> Hdf5Decoder:
        return Hdf5Decoder(self.root, self.schema)


def _is_hdf5(path: Path) -> bool:
    return path.suffix.lower() in hdf5.SUFFIXES and not path.name.startswith(".")


def _list_files(path: Path) -> list[str]:
    """Return the names of the files, in natural order. Raises UserError if there are none."""
    if not path.is_dir():
        return [path.name]
    files = [entry.name for entry in path.iterdir() if _is_hdf5(entry) and not entry.is_dir()]
    if not files:
        raise UserError(f"{path}: holds no HDF5 files ({', '.join(hdf5.SUFFIXES)})")
    return sorted(files, key=natural_order)


def _find_episodes(path: Path, opened: h5py.File) -> list[str]:
    """Call `layout.find_episodes`. Raises UserError if the file is damaged."""
    try:
        return layout.find_episodes(opened)
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path}: is no readable HDF5 file ({sentence(error)})") from error


def _choose(
    path: Path, root: Path, files: list[str], name: str, schema: Schema | None
) -> tuple[Schema, dict[str, str]]:
    """Return the schema and the cameras, by the first readable episode. Raises UserError."""
    problem = "holds no episodes"
    for file in files:
        try:
            with open_hdf5(root / file) as opened:
                for key in _find_episodes(root / file, opened):
                    try:
                        return _complete(path, opened, layout.find(opened, key), name, schema)
                    except UserError:
                        raise
                    except DAMAGE:  # reading the episode says so
                        continue
        except UserError as error:
            problem = str(error)
    raise UserError(problem if str(path) in problem else f"{path}: {problem}")


def _complete(
    path: Path, file: h5py.File, group: h5py.Group, name: str, schema: Schema | None
) -> tuple[Schema, dict[str, str]]:
    data_sets = layout.list_data_sets(group)
    wanted = schema or Schema()
    cameras = layout.camera_keys(data_sets)
    signals = [
        key
        for key in (data_sets if schema else layout.signal_keys(data_sets, Schema()))
        if key not in cameras and data_sets[key].dtype.kind in "fiub"
    ]
    keys = (*layout.TEXTS, *wanted.language, *filter(None, [wanted.recording.key]))
    texts = [key for key in dict.fromkeys(keys) if layout.read_text(group, key) is not None]
    known = Keys(
        [*cameras, *(key for key in wanted.cameras.values() if key in data_sets)],
        [*signals, *(key for key in wanted.present.values() if _has(group, key))],
        texts,
        ("train", "valid") if layout.read_splits(file) else (),
    )
    chosen = choose_schema(path, name, schema, known)
    defaults = [key for key in layout.TEXTS if key in texts]
    chosen = replace(
        chosen,
        hz=chosen.hz or layout.control_frequency(file),
        language=chosen.language or tuple(defaults[: len(LANGUAGES)]),
    )
    return chosen, dict(chosen.cameras) or {name: key for key, name in names_of(cameras).items()}


def _has(group: h5py.Group, key: str) -> bool:
    try:
        layout.read_flag(group, key)
    except ValueError:
        return False
    return True


def _checksum(path: Path) -> int:
    """Return the CRC-32C of a file's bytes."""
    if not stat.S_ISREG(path.stat().st_mode):
        return 0
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = google_crc32c.extend(checksum, block)
    return checksum


# --------------------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Episodes:
    """Some episodes of a file. It is opened in the process that reads them.

    size:     their share of the file, in bytes
    groups:   of the episodes; None = all of the file
    checksum: of the file's bytes; None = it is computed here
    is_alone: is this the only file, so that its name need not be part of the episodes' names?
    """

    root: Path
    file: str
    schema: Schema
    size: int
    is_alone: bool
    groups: tuple[str, ...] | None = None
    checksum: int | None = None

    @property
    def path(self) -> Path:
        return self.root / self.file

    def pieces(self) -> list[tuple[str, Episodes]]:
        """Return a part per episode, or this one if its episodes are not known."""
        if not self.groups:
            return [(str(self.path), self)]
        return [(f"{self.path}: {each}", replace(self, groups=(each,))) for each in self.groups]

    def episodes(self) -> Iterator[Episode | str]:
        try:
            opened = open_hdf5(self.path)
        except UserError as error:
            yield str(error)
            return
        with opened:
            try:
                checksum = _checksum(self.path) if self.checksum is None else self.checksum
                groups = self.groups or tuple(layout.find_episodes(opened))
                splits = layout.read_splits(opened)
            except DAMAGE as error:
                yield f"{self.path}: is no readable HDF5 file ({error})"
                return
            if not groups:
                yield f"{self.path}: holds no episodes"
            for group in groups:
                split = splits.get(group.rpartition("/")[2], "")
                if self.schema.splits and split not in self.schema.splits:
                    continue
                try:
                    yield self._read(opened, group, split, checksum)
                except DAMAGE as error:
                    yield f"{self.path}, {group or 'the file'}: {sentence(error)}"

    def _read(self, file: h5py.File, key: str, split: str, checksum: int) -> Episode:
        group = layout.find(file, key)
        if not layout.is_group(group):
            raise ValueError("is no group, nor a link to one")
        data_sets = layout.list_data_sets(group)
        cameras = episode_cameras(group, data_sets, self.schema)
        if not cameras:
            shapes = [f"{k} {list(v.shape)}" for k, v in data_sets.items() if v.ndim >= 3]
            raise ValueError(
                "has no pictures, uint8 [T, H, W, 3]"
                + (f"; it has {', '.join(shapes)}" * bool(shapes))
            )
        sizes = {c: layout.picture_size(k, data_sets[k]) for c, k in cameras.items()}
        picture_keys = set(layout.camera_keys(data_sets)) | set(cameras.values())
        keys = [k for k in layout.signal_keys(data_sets, self.schema) if k not in picture_keys]
        lengths = {k: len(data_sets[k]) for k in (*cameras.values(), *keys) if data_sets[k].ndim}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{n} in {k}" for k, n in lengths.items())
            raise ValueError(f"has different lengths: {shown}")
        length = next(iter(lengths.values()))
        names = names_of(keys)
        signals = {names[k]: layout.read_numbers(k, data_sets[k]) for k in keys}
        recording = self.schema.recording
        own = f"{self.file}/{key}" if key else self.file
        path = (layout.read_text(group, recording.key) or "") if recording.key else own
        return Episode(
            key=own,
            length=length,
            signals=signals,
            pictures={camera: Pictures(sizes[camera], checksum) for camera in cameras},
            texts=tuple(layout.read_text(group, k) or "" for k in self.schema.language),
            origin=Origin.of(recording, path, self._name(key), split),
        )

    def _name(self, key: str) -> str:
        stem, name = Path(self.file).stem, key.rpartition("/")[2]
        if not name:
            return stem
        return name if self.is_alone else f"{stem}_{name}"
