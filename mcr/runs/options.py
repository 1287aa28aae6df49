"""The options of a run: overrides on the command line, and what a resumed run may change.

Configs are nested dataclasses. Their keys are written with dots: "data.cameras". Hydra reads the
command line; this module checks it first, because Hydra's own messages suggest no alternative.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import mcr
from mcr.errors import UserError, nearest, require_choice
from mcr.runs.ranges import MAPPING, Range, ranges_of

RESUME = ("auto", "never")  # "auto" continues the run in the folder, "never" refuses such a folder


def recipes_folder() -> Path:
    """Return the folder of recipes: inside the installed package, or `cfgs/` of a source tree."""
    package = Path(mcr.__file__).parent
    installed = package / "cfgs"
    return installed if installed.is_dir() else package.parent / "cfgs"


def check_overrides(
    arguments: Iterable[str], config_class: type, renamed: Mapping[str, str] | None = None
) -> None:
    """Raise UserError for a `key=value` whose key the config does not have.

    The message names the nearest key. So does that for a name in a mapping, such as
    `loss_weights.NAME`, and for a recipe of a group, such as `+ablation=NAME`.

    renamed: keys of earlier versions -> their present names; the message names the present one
    """
    renamed = renamed or {}
    known = known_keys(config_class)
    parts = {key.partition(".")[0] for key in known}  # cfgs/data holds schemas, no group of recipes
    groups = {path.name for path in recipes_folder().iterdir() if path.is_dir()} - parts
    ranges = ranges_of(config_class)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        key = key.lstrip("+~")
        if argument.startswith("-") or not equals or key.startswith("hydra"):
            continue
        if key in renamed:
            raise UserError(f"{key} is called {renamed[key]} now: write {renamed[key]}=...")
        if (group := key.partition("@")[0]) in groups:
            _check_recipes(group, value)
            continue
        parent, _, name = key.rpartition(".")
        if ranges.get(key) is MAPPING:
            _require_unique_names(key, value)
        elif _is_of_mapping(key, ranges):
            continue
        elif parent in ranges and ranges[parent].names:
            require_choice(f"name in {parent}", name, ranges[parent].names)
        elif key not in known and parent not in known:
            raise UserError(f"unknown option {key!r}{nearest(key, known)}")


def addable(arguments: Iterable[str], config_class: type) -> list[str]:
    """Return a command line's arguments so that Hydra takes new entries of a mapping.

    `data.mix={...}` and `data.mix.bridge.weight=2` must work although the recipe does not mention
    the data sets or the weight.
    """
    ranges = ranges_of(config_class)
    return [
        f"++{argument}" if _is_of_mapping(argument.partition("=")[0], ranges) else argument
        for argument in arguments
    ]


def _is_of_mapping(key: str, ranges: Mapping[str, Range]) -> bool:
    keys = [key.rsplit(".", depth)[0] for depth in range(key.count(".") + 1)]
    return any(ranges.get(parent) is MAPPING for parent in keys)


def _require_unique_names(key: str, text: str) -> None:
    """Raise UserError if "{a: {...}, b: ...}" has a name twice; Hydra would keep the last one."""
    for name, count in Counter(_outer_names(text)).items():
        if count > 1:
            raise UserError(f"{key} names {name} twice; give each entry a name of its own")


def _outer_names(mapping: str) -> Iterator[str]:
    """Yield the names of "{a: {...}, b: ...}", and not those of the mappings inside."""
    depth, word = 0, ""
    for letter in mapping:
        depth += (letter in "{[") - (letter in "}]")
        if depth == 1 and letter == ":":
            yield word.strip(" '\"")
        word = "" if letter in "{[,:" else word + letter


def _check_recipes(group: str, text: str) -> None:
    """text: the value of the override: a name, or several with commas between for a sweep"""
    names = [path.stem for path in (recipes_folder() / group).glob("*.yaml")]
    for name in text.split(","):
        if re.fullmatch(r"[\w-]+", name):
            require_choice(f"recipe in {group}", name, names)


def check_values(
    values: Any, config_class: type, prefix: str = "", others: Collection[str] = ()
) -> None:
    """Raise UserError for a key that the config lacks, or a value that is out of its range.

    values: some or all of the config's fields, as nested dictionaries
    prefix: what messages put before the keys, such as "data."
    others: further names that messages may suggest
    """
    ranges, known = ranges_of(config_class), known_keys(config_class)
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.')}={values!r} must be a mapping of options to values")
    for key, value in _leaves(values, ranges):
        if key not in known:
            raise UserError(f"unknown option {prefix + key!r}{nearest(key, known | {*others})}")
        ranges[key].require(prefix + key, value)


def _leaves(
    values: Mapping[str, Any], ranges: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested dictionaries with their values. An option's own value is a leaf."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and prefix + name not in ranges:
            yield from _leaves(value, ranges, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def known_keys(config_class: type, prefix: str = "") -> set[str]:
    """Return all keys that can be overridden: the fields that are not dataclasses themselves."""
    types = get_type_hints(config_class)
    keys = set()
    for part in fields(config_class):
        if is_dataclass(types[part.name]):
            keys |= known_keys(types[part.name], f"{prefix}{part.name}.")
        else:
            keys.add(prefix + part.name)
    return keys


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested dataclasses or dicts into {"data.root": ..., ...}."""
    if is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def check_resume(run_dir: Path, resume: str, is_used: bool) -> None:
    """Raise UserError if `resume` is unknown, or is "never" although `run_dir` holds a run.

    is_used: whether `run_dir` holds a run
    """
    require_choice("resume", resume, RESUME)
    if is_used and resume == "never":
        raise UserError(f"{run_dir}: holds a run; choose another run_dir or resume=auto")


def require_same_config(
    run_dir: Path,
    old: dict[str, Any],
    new: dict[str, Any],
    free: Collection[str],
    renamed: Mapping[str, str] | None = None,
    fix: str = "choose another run_dir",
    defaults: dict[str, Any] | None = None,
) -> None:
    """Raise UserError if the run in `run_dir` cannot be resumed with the config `new`.

    fix: what the user can do about it; the other arguments are those of `config_difference`
    """
    if difference := config_difference(old, new, free, renamed, defaults):
        shown = "".join(f"\n  {line}" for line in difference)
        raise UserError(f"{run_dir} was begun with another config:{shown}\n{fix}")


def config_difference(
    old: dict[str, Any],
    new: dict[str, Any],
    free: Collection[str],
    renamed: Mapping[str, str] | None = None,
    defaults: dict[str, Any] | None = None,
) -> list[str]:
    """Return a line "key: old -> new" for each key that differs between two configs and must not.

    old, new: as `dataclasses.asdict` returns them
    free:     keys that may differ, because they change how a run computes, not what
    renamed:  keys of earlier versions -> their present names
    defaults: a config with default values. An option that an earlier version did not have counts
              as its default, so an upgrade does not stop a running job.
    """
    renamed = renamed or {}
    before = {renamed.get(key, key): value for key, value in flatten(old).items()}
    before = flatten(defaults or {}) | before
    after = flatten(new)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after} - {*free})
        if before.get(key) != after.get(key)
    ]
