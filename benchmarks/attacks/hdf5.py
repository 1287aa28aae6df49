"""HDF5: damaged bytes, and sound files whose groups, data sets and attributes are wrong."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import h5py
import numpy as np

from attacks.damages import EXTREMES
from attacks.data_sets import DataSet, short_episodes
from tests.data.formats import write_hdf5


class Hdf5(DataSet):
    def sound(self, folder: Path) -> None:
        (folder / "data").mkdir()
        write_hdf5(folder, short_episodes()).rename(folder / "data" / "demos.hdf5")
        os.mkfifo(folder / "pipe")

    def copy(self, source: Path, folder: Path) -> None:
        (folder / "data").mkdir(parents=True)
        shutil.copyfile(source / "data/demos.hdf5", folder / "data/demos.hdf5")
        os.mkfifo(folder / "pipe")

    def damage_structure(self, path: Path, draw: random.Random) -> str:
        with h5py.File(path, "r+") as file:
            keys: list[str] = []
            file.visit(keys.append)
            key = draw.choice(keys)
            change = draw.choice(_CHANGES)
            if change is not _link and key.count("/") < 2:  # an episode that is gone is no loss
                key = "data/demo_2/" + draw.choice(("actions", "obs", "obs/front", "obs/state"))
            change(file, key, path, draw)
        return f"{change.__name__} at {key}"


def _remove(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    del file[key]


def _replace(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    del file[key]
    values = draw.choice(
        (
            0.0,
            "text",
            b"\xff",
            np.zeros(3),
            np.zeros((0, 4)),
            np.zeros((5, 0), np.uint8),
            [b"a"] * 3,
        )
        + (np.full((5, 3), np.nan), np.zeros((5, 2, 2, 3), np.int64), np.array(["a"], "S100"))
    )
    file[key] = values


def _huge(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    """A data set whose shape is absurd, and which takes no space in the file."""
    del file[key]
    shape = draw.choice(
        ((2**40, 7), (2**31, 48, 64, 3), (5, 65500, 65500, 3), (2**50,), (5, 2**33))
    )
    kind = draw.choice((np.uint8, np.float32))
    chunks = tuple(min(n, 16) for n in shape)
    file.create_dataset(key, shape, kind, chunks=chunks, compression="gzip")


def _bomb(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    """Few bytes that decompress to a gigabyte."""
    del file[key]
    values = file.create_dataset(
        key, (16, 2**26), np.uint8, chunks=(1, 2**26), compression="gzip", fillvalue=7
    )
    values[0, :] = 0


def _link(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    """Links that lead in a circle, out of the file, or to nothing."""
    del file[key]
    target = draw.choice(
        (
            h5py.SoftLink("/"),
            h5py.SoftLink(f"/{key}"),
            h5py.SoftLink("/nowhere"),
            h5py.ExternalLink(str(path.parents[1] / "pipe"), "/"),
            h5py.ExternalLink("/dev/zero", "/data"),
            h5py.ExternalLink("demos.hdf5", "/data"),
        )
    )
    file[key] = target


def _hard_loop(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    file[f"{key.rpartition('/')[0] or 'data'}/again"] = file["/"]


def _outside(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    """A data set whose bytes lie in another file."""
    del file[key]
    other = draw.choice(("/etc/passwd", str(path.parents[1] / "pipe"), "/dev/zero"))
    file.create_dataset(key, (5, 7), np.uint8, external=[(other, 0, 35)])


def _virtual(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    del file[key]
    layout = h5py.VirtualLayout((5, 7), np.float32)
    layout[:] = h5py.VirtualSource(draw.choice((".", str(path.parents[1] / "pipe"))), "x", (5, 7))
    file.create_virtual_dataset(key, layout)


def _attribute(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    name = draw.choice(("language_instruction", "env_args", "num_samples"))
    place = draw.choice((file[key], file["data"]))
    value = draw.choice([v for v in EXTREMES if isinstance(v, int | float | str)])
    if value in ("\ud800", "\0") or isinstance(value, int) and abs(value) > 2**62:
        value = draw.choice((h5py.Empty("f4"), np.void(b"\xff\xfe"), np.bytes_(b"\xff\xfe")))
    if isinstance(value, str) and len(value) > 60_000:
        value = value[:60_000]
    place.attrs[name] = value


def _types(file: h5py.File, key: str, path: Path, draw: random.Random) -> None:
    """Rows of variable length, references, compounds, enumerations."""
    del file[key]
    kind = draw.choice(
        (h5py.vlen_dtype(np.uint8), h5py.ref_dtype, h5py.regionref_dtype, h5py.string_dtype())
        + (np.dtype([("a", "f4"), ("b", "S3")]), h5py.enum_dtype({"A": 1}), np.dtype("c8"))
    )
    file.create_dataset(key, (draw.choice((0, 5)),), kind)


_CHANGES = (
    _remove,
    _replace,
    _replace,
    _huge,
    _bomb,
    _link,
    _hard_loop,
    _outside,
    _virtual,
    _attribute,
    _types,
)
