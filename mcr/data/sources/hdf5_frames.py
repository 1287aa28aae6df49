"""The pictures of HDF5 files: which cameras an episode has, and a decoder of their frames."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcr.data import pictures
from mcr.data.hdf5 import open_hdf5
from mcr.data.schema import Schema, names_of
from mcr.data.sources import hdf5_layout as layout
from mcr.data.sources.source import DAMAGE, sentence
from mcr.errors import UserError

if TYPE_CHECKING:
    import h5py

_BYTES_PER_READ, _FRAMES_PER_READ = 2**26, 64
_OPEN_FILES = 8


def episode_cameras(
    group: h5py.Group, data_sets: dict[str, h5py.Dataset], schema: Schema
) -> dict[str, str]:
    """Return name -> key of the cameras that an episode has."""
    found = {name: key for key, name in names_of(layout.camera_keys(data_sets)).items()}
    wanted = schema.cameras or found
    cameras = {camera: key for camera, key in wanted.items() if key in data_sets}
    flags = {camera: key for camera, key in schema.present.items() if camera in cameras}
    absent = {camera for camera, key in flags.items() if not layout.read_flag(group, key)}
    return {camera: key for camera, key in cameras.items() if camera not in absent}


class Hdf5Decoder:
    """Reads the frames of episodes, a few at a time. It keeps some files open."""

    def __init__(self, root: Path, schema: Schema):
        self._root = root
        self._schema = schema
        self._files: OrderedDict[str, h5py.File] = OrderedDict()
        self._cameras: dict[str, dict[str, str]] = {}  # of the episodes of open files

    def frames(self, key: str, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at increasing `steps` of the episode `key`: uint8 [H, W, 3].

        Raises UserError that names file, episode and step if one cannot be read.
        """
        file, _, group = key.partition("/")
        path = self._root / file
        opened = self._open(file)
        with _named(path, f"{group or 'the file'}, {camera}"):
            values = self._data_set(opened, key, group, camera)
            encoded, run_length = layout.is_encoded(values), _run_length(values)
        for run in _runs(steps, run_length):
            with _named(path, f"{group or 'the file'}, {camera}, step {run[0]}"):
                if encoded:
                    block: Any = (pictures.decode(layout.row_bytes(values, s)) for s in run)
                    block = list(block)
                else:
                    block = values[run[0] : run[-1] + 1]
                    if len(block) != len(run):
                        raise ValueError(f"the file has only {len(values)} frames")
            yield from block

    def _open(self, file: str) -> h5py.File:
        if file in self._files:
            self._files.move_to_end(file)
        else:
            if len(self._files) >= _OPEN_FILES:
                _, oldest = self._files.popitem(last=False)
                oldest.close()
            self._files[file] = open_hdf5(self._root / file)
        return self._files[file]

    def _data_set(self, opened: h5py.File, key: str, group: str, camera: str) -> h5py.Dataset:
        place = layout.find(opened, group)
        if key not in self._cameras:
            self._cameras[key] = episode_cameras(place, layout.list_data_sets(place), self._schema)
        return place[self._cameras[key][camera]]

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


@contextlib.contextmanager
def _named(path: Path, place: str) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path}, {place}: {sentence(error)}") from error


def _run_length(values: h5py.Dataset) -> int:
    """Return how many frames to read at once: whole compressed chunks, in bounded memory."""
    if layout.is_encoded(values):
        return 1
    frame_bytes = max(1, int(np.prod(values.shape[1:])))
    most = max(1, _BYTES_PER_READ // frame_bytes)
    chunk = values.chunks[0] if values.chunks else 1
    return min(most, max(chunk, _FRAMES_PER_READ // chunk * chunk))


def _runs(steps: Sequence[int], length: int) -> Iterator[list[int]]:
    """Split increasing steps into runs of at most `length` that follow each other."""
    run: list[int] = []
    for step in steps:
        if run and (step != run[-1] + 1 or len(run) == length):
            yield run
            run = []
        run.append(int(step))
    if run:
        yield run
