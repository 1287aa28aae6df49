"""Mixtures: several data sets in every batch, each with its own options.

    data.mix:
      droid: {root: /data/droid/1.0.1, weight: 3}
      bridge: {root: /data/bridge, schema: bridge, weight: 1}

An entry names a data set. It holds `weight` (default 1), and those options of `data` whose values
differ from `data` for this data set. Every batch holds the same number of clips of each data set,
in proportion to the weights. This module turns the entries into a DataConfig and a number of clips
for each data set. Without `data.mix` there is one data set, which has no name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from mcr.data.batch import UNNAMED
from mcr.data.loader import DataConfig
from mcr.errors import UserError
from mcr.runs.options import check_values

# Options that concern all data sets together. An entry may not set them.
_OF_THE_RUN = (
    "workers",
    "prefetch",
    "max_errors",
    "skip_unread_frames",
    "mix",
    "mix_multiple",
)


def data_sets(data: DataConfig) -> dict[str, DataConfig]:
    """Return the options of each data set, by name, in the order of the names.

    Raises UserError if an entry of `data.mix` is not usable, or if there is `data.root`, too.
    """
    if not data.mix:
        if not data.root:
            raise UserError("data.root is not set: give a data set, of any format in docs/data.md")
        return {UNNAMED: data}
    if data.root:
        raise UserError(
            f"data.root={data.root} and data.mix exclude each other: make it an entry of data.mix"
        )
    return {name: _data_set(data, name, data.mix[name]) for name in sorted(data.mix)}


def _data_set(data: DataConfig, name: str, entry: Any) -> DataConfig:
    key = f"data.mix.{name}"
    if not re.fullmatch(r"\w[\w-]*", name, re.ASCII):
        raise UserError(f"{key}: a name consists of letters, digits, _ and -")
    if not isinstance(entry, Mapping) or not entry.get("root"):
        raise UserError(f"{key}={entry}: give its options, such as {{root: PATH, weight: 1}}")
    options = {option: value for option, value in entry.items() if option != "weight"}
    for option in _OF_THE_RUN:
        if option in options:
            raise UserError(f"{key}.{option} concerns all data sets: set data.{option}")
    check_values(options, DataConfig, f"{key}.", others=["weight"])
    return _changed(dataclasses.replace(data, mix={}, mix_multiple=1), options)


def _changed(config: Any, options: Mapping[str, Any]) -> Any:
    """Return a dataclass with other values, those of nested dataclasses included."""
    values = {}
    for name, value in options.items():
        own = getattr(config, name)
        values[name] = _changed(own, value) if dataclasses.is_dataclass(own) else value
    return dataclasses.replace(config, **values)


def with_data_sets(data: DataConfig, resolved: Mapping[str, DataConfig]) -> DataConfig:
    """Return `data` with the given options of its data sets, all of which are written out."""
    if not data.mix:
        return resolved[UNNAMED]
    mix = {}
    for name, of_set in resolved.items():
        options = dataclasses.asdict(of_set)
        for option in _OF_THE_RUN:
            del options[option]
        mix[name] = {"weight": weights(data)[name]} | options
    return dataclasses.replace(data, mix=mix)


def weights(data: DataConfig) -> dict[str, float]:
    """Return the weight of each data set. Raises UserError for a bad one."""
    found = {name: data.mix[name].get("weight", 1.0) for name in sorted(data.mix)} or {UNNAMED: 1.0}
    for name, weight in found.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < math.inf:
            raise UserError(f"data.mix.{name}.weight={weight} must be a finite number, at least 0")
    if not any(found.values()):
        raise UserError(f"data.mix: the weights of {', '.join(found)} sum to 0")
    return found


def clip_counts(shares: Mapping[str, float], num_clips: int, multiple: int) -> dict[str, int]:
    """Divide the clips of a batch among the data sets, in proportion to their weights.

    The counts are multiples of `multiple`. They are rounded so that the data sets with the largest
    remainders get what is left over. They are the same in every batch, so that tensors keep their
    shapes, and depend on nothing but the arguments.

    Raises UserError if `multiple` does not divide `num_clips`, or if a data set gets no clip.
    """
    if multiple < 1 or num_clips % multiple:
        raise UserError(
            f"{num_clips} clips do not divide into multiples of {multiple}, which data.mix_multiple"
            ", model.ghost_batch and objectives.time_contrastive.group ask for"
        )
    total, units = sum(shares.values()), num_clips // multiple
    exact = {name: units * share / total for name, share in shares.items()}
    counts = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: units - sum(counts.values())]:
        counts[name] += 1
    for name, count in counts.items():
        if count == 0:
            raise UserError(
                f"data.mix: {name} gets none of the {num_clips} clips that are computed at a time: "
                f"its weight is {shares[name]:g} of {total:g}, and each data set gets a multiple "
                f"of {multiple}; raise its weight or batch_size, or leave it out"
            )
    return {name: multiple * count for name, count in counts.items()}
