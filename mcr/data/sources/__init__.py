"""Sources: one file per format of robot data. `open_source` tells the formats apart."""

from __future__ import annotations

from pathlib import Path

from mcr.data.other_data import OTHER_DATA
from mcr.data.sources.rlds import RldsSource
from mcr.data.sources.source import Source
from mcr.data.sources.tree import TreeSource
from mcr.errors import UserError

SOURCES: dict[str, type[Source]] = {"rlds": RldsSource, "tree": TreeSource}  # first match wins


def open_source(folder: Path) -> Source:
    """Open the data set in `folder`. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; data.root is a tree or an RLDS version folder")
    for source in SOURCES.values():
        if source.recognises(folder):
            return source(folder)
    raise UserError(f"{folder}: holds neither shards (features.json) nor episodes (*/{OTHER_DATA})")
