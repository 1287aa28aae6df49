"""robomimic's HDF5 files: the only module that knows how they are laid out.

    data                   attributes: env_args, JSON that says how the simulator was made
    data/<episode>         demo_0, demo_1, ...; T steps each
        actions            float [T, A]
        obs/<camera>       uint8 [T, H, W, 3]; the name usually ends in _image
        obs/<signal>       float [T, k]
        obs/<x>_mask       [T, H, W]; the mask of the camera <x>_image
    mask/<subset>          names of episodes; subsets are usually called train and valid

The feature cache, behaviour cloning, centricity and `mcr.robomimic` read such files through
`Hdf5File`. `mcr.simulation.recorder` and robomimic itself write them. Needs the extra `hdf5`.
`open_hdf5` opens HDF5 files of any layout, for `sources/hdf5.py`, too.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mcr.errors import UserError, import_extra

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".hdf5", ".h5")
_FRAMES_PER_READ = 64  # compressed chunks may span several frames
_CACHE_BYTES = 2**25  # of decompressed chunks, for each data set


def open_hdf5(path: Path) -> h5py.File:
    """Open a file to read it. Raises UserError if it is no HDF5 file, or is cut off."""
    hdf5 = import_extra("h5py", "hdf5")
    if path.exists() and not path.is_file():  # a pipe would block for ever
        raise UserError(f"{path}: is no regular file")
    with readable(path):
        return hdf5.File(path, "r", rdcc_nbytes=_CACHE_BYTES)


@contextlib.contextmanager
def readable(path: Path, place: str = "") -> Iterator[None]:
    """Turn an error of HDF5 inside the block into a UserError.

    place: data of the file that is being read, for the message; "" = the file as a whole
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if place:
            raise UserError(f"{path}, {place}: cannot be read ({error})") from error
        raise UserError(f"{path}: is no readable HDF5 file ({error})") from error


class Hdf5File:
    """An open file; a context manager that closes it.

    A key names data of an episode: "actions", "obs/front_image", "next_obs/front_image", ...

    path:     the file
    episodes: their names in natural order, demo_2 before demo_10
    Raises UserError if the file cannot be read, here and in every method.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = open_hdf5(path)
        with readable(path):
            self.episodes: list[str] = sorted(self._file.get("data", {}), key=natural_order)

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def env_args(self) -> dict[str, Any]:
        """How the simulator was made; {} if the file does not say it."""
        return json.loads(self._file["data"].attrs.get("env_args", "{}"))

    def observations(self, episode: str) -> dict[str, h5py.Dataset]:
        """An episode's cameras, signals, masks and other observations by name; nothing is read."""
        with readable(self.path, episode):
            return dict(self._file[f"data/{episode}"].get("obs", {}))

    def cameras(self, episode: str) -> dict[str, int]:
        """An episode's cameras and the number of frames of each."""
        return {
            name: len(values)
            for name, values in self.observations(episode).items()
            if values.dtype == np.uint8 and values.ndim == 4 and values.shape[-1] == 3
        }

    def signals(self, episode: str) -> list[str]:
        """Names of an episode's observations that are float [T, k]."""
        return [
            name
            for name, values in self.observations(episode).items()
            if values.ndim == 2 and values.dtype.kind == "f"
        ]

    def length(self, episode: str, key: str = "actions") -> int | None:
        """Number of steps of an episode's data; None if the episode does not have it."""
        with readable(self.path, episode):
            values = self._file[f"data/{episode}"].get(key)
            return None if values is None else len(values)

    def read(self, episode: str, key: str, steps: int | slice = slice(None)) -> np.ndarray:
        """Some steps of an episode's data, in the file's dtype. KeyError if it is not there."""
        with readable(self.path, f"{episode}, {key}"):
            return self._file[f"data/{episode}/{key}"][steps]

    def frames(self, episode: str, camera: str) -> Iterator[np.ndarray]:
        """All frames of one camera in order, uint8 [H, W, 3]; few are in memory at a time."""
        for begin in range(0, self.length(episode, f"obs/{camera}") or 0, _FRAMES_PER_READ):
            yield from self.read(episode, f"obs/{camera}", slice(begin, begin + _FRAMES_PER_READ))

    def subset(self, name: str) -> list[str] | None:
        """Names of the episodes of a subset, "train" or "valid"; None if the file has no such."""
        with readable(self.path):
            names = self._file.get(f"mask/{name}")
            return None if names is None else [episode.decode() for episode in names[()]]

    def copy(self, target: h5py.File, without: Collection[str]) -> None:
        """Copy all groups, data sets and attributes but the data sets called as in `without`."""

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, hdf5.Group):
                copied = target.require_group(name)
            elif name.rpartition("/")[2] in without:
                return
            else:
                copied = target.create_dataset(name, data=item[()])
            copied.attrs.update(item.attrs)

        hdf5 = import_extra("h5py", "hdf5")
        self._file.visititems(copy)


def natural_order(text: str) -> list[tuple[int, str]]:
    """A sorting key that puts 2 before 10: digits are compared as numbers, the rest as text."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
