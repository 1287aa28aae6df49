"""Sources: one file per format of robot data. `open_source` is the only one to tell them apart."""

from __future__ import annotations

from pathlib import Path

from mcr.data.schema import Schema
from mcr.data.sources.hdf5 import Hdf5Source
from mcr.data.sources.lerobot import LerobotSource
from mcr.data.sources.media import MediaSource
from mcr.data.sources.rlds import RldsSource
from mcr.data.sources.source import Source
from mcr.data.sources.tree import TreeSource
from mcr.errors import UserError

# The first that recognises a data set opens it. Pictures alone are taken for media last.
SOURCES: dict[str, type[Source]] = {
    "rlds": RldsSource,
    "lerobot": LerobotSource,
    "hdf5": Hdf5Source,
    "tree": TreeSource,
    "media": MediaSource,
}


def open_source(path: Path, schema: Schema | None = None) -> Source:
    """Open the data set at `path`.

    schema: None = the one of the package that is meant for it, if there is one

    Raises UserError if there is no data set of a known format, or if it is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path to the data")
    for source in SOURCES.values():
        if source.recognises(path):
            return source(path, schema)
    raise UserError(
        f"{path}: holds no data set of a known format: neither RLDS shards (features.json), nor a "
        "LeRobot data set (meta/info.json), nor HDF5, nor episodes (*/other_data.pkl), nor videos, "
        "nor pictures"
    )
