"""Seen sessions: which recording sessions of a data set an encoder was pretrained on.

Checkpoints and exports know the fingerprint of their data and how it was split. Probes that are
judged on sessions which pretraining has seen tell nothing about new ones, so `offline` marks them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mcr.data.index import Index
from mcr.data.selection import SelectionConfig, select_episodes, split_sessions


def seen_sessions(provenance: Mapping[str, Any], index: Index) -> set[str]:
    """Return the sessions of `index` that an encoder was trained on; none if it was on other data.

    provenance: what the encoder's file says about its training, see `models.layouts.Weights`
    The data are recognised by their fingerprint, so the same recordings in another format are not.
    Filters that are files are not read: their episodes count as seen. An encoder that says nothing
    about its split counts as having seen all.
    """
    dataset, data = provenance.get("dataset", {}), provenance.get("config", {}).get("data", {})
    seen: set[str] = set()
    for name, part in dataset.get("mix", {"": dataset}).items():
        if part.get("fingerprint") in (index.fingerprint, index.signals_fingerprint):
            seen |= _training_sessions(_selection(data, name), index)
    return seen


def _selection(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The selection of a data set of a mixture, or that of all."""
    of_its_own = data.get("mix", {}).get(name, {}).get("selection", {})
    return {**data.get("selection", {"val_fraction": 0.0}), **of_its_own}


def _training_sessions(selection: Mapping[str, Any], index: Index) -> set[str]:
    known = {field.name for field in dataclasses.fields(SelectionConfig)}
    config = SelectionConfig(**{key: v for key, v in selection.items() if key in known})
    names = [name for name in config.episodes if not name.endswith(".txt")]
    config = dataclasses.replace(config, episodes=names, keep_ranges="")
    episodes, _ = select_episodes(index, config)
    training, _ = split_sessions(index, episodes, config.val_fraction)
    return set(index.table["session"].to_numpy()[training.rows])
