"""Where an HDF5 file has its episodes, and what is in them: pictures, numbers and texts.

This is what robomimic's and ALOHA's files have in common, and most others. A key is the path of a
data set inside the group of its episode.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcr.data import pictures
from mcr.data.hdf5 import natural_order, open_hdf5
from mcr.data.regular_files import parse_json
from mcr.data.schema import LANGUAGES, Schema, is_large, short_name

if TYPE_CHECKING:
    import h5py

_OBSERVATIONS = ("obs", "observation", "observations")
_ROLES = (*_OBSERVATIONS, "action", "actions", "action_dict")
_NO_EPISODES = ("mask",)  # robomimic's names of the episodes of a split
TEXTS = (*LANGUAGES, "language", "language_raw", "instruction", "task", "text", "problem_info")
_MAX_NUMBERS = 2**26  # of one signal of one episode


def find_episodes(file: h5py.File) -> list[str]:
    """Return the groups that are episodes, in natural order; [""] if the file itself is one.

    data/*                   robomimic, if `data` holds groups
    the file                 ALOHA: it holds data sets, or observations
    all groups of the file   otherwise
    """
    if names := _groups_in(find(file, "data")):
        return [f"data/{name}" for name in names]
    if any(name in _OBSERVATIONS or is_data_set(find(file, name)) for name in file):
        return [""]
    return [name for name in _groups_in(file) if name not in _NO_EPISODES]


def _groups_in(group: Any) -> list[str]:
    if not is_group(group):
        return []
    # What cannot be opened counts, so that reading it says so.
    is_one = (_is_link(group, name) or not is_data_set(group.get(name)) for name in group)
    return sorted(itertools.compress(group, is_one), key=natural_order)


def find(group: h5py.Group, key: str, most_links: int = 8) -> Any:
    """Return the group or data set at a path inside of a group; None if there is none.

    Links are followed one by one, because HDF5 itself would open any file or pipe that one names.

    Raises ValueError for a link that leads in a circle or to another folder, and UserError for one
    to a file that is not readable.
    """
    item: Any = group
    for name in filter(None, key.split("/")):
        if not is_group(item):
            return None
        if not _is_link(item, name):
            item = item.get(name)
            continue
        link = item.get(name, getlink=True)
        if most_links == 0:
            raise ValueError(f"{name} is one of too many links that follow each other")
        if hasattr(link, "filename"):
            item = find(_linked_file(item, link.filename), link.path, most_links - 1)
        else:
            start = item.file if link.path.startswith("/") else item
            item = find(start, link.path, most_links - 1)
    return item


def _is_link(group: h5py.Group, name: str) -> bool:
    return hasattr(group.get(name, getlink=True), "path")


def _linked_file(group: h5py.Group, name: str) -> h5py.File:
    """Open the file of a link, which must lie beside the file that holds the link."""
    if Path(name).name != name:
        raise ValueError(f"a link leads to {name!r}; only files beside this one are opened")
    return open_hdf5(Path(group.file.filename).with_name(name))


def is_group(item: Any) -> bool:
    return hasattr(item, "visititems")


def is_data_set(item: Any) -> bool:
    return hasattr(item, "chunks")


def list_data_sets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Return key -> data set of an episode, without those of the next step and masks."""
    found: dict[str, h5py.Dataset] = {}

    def visit(key: str, item: h5py.Group | h5py.Dataset) -> None:
        parts = key.split("/")
        is_other = parts[0] in _NO_EPISODES or any(p.startswith("next_") for p in parts)
        if is_data_set(item) and not is_other and not key.endswith("_mask"):
            _require_own_values(key, item)
            found[key] = item

    group.visititems(visit)
    return found


def _require_own_values(key: str, values: h5py.Dataset) -> None:
    """Raise ValueError if values lie in other files, which could be any, or a pipe."""
    is_virtual = values.is_virtual and any(s.file_name != "." for s in values.virtual_sources())
    if values.external or is_virtual:
        raise ValueError(f"{key} keeps its values in other files, which are not read")


# --------------------------------------------------------------------------- pictures


def camera_keys(data_sets: dict[str, h5py.Dataset]) -> list[str]:
    """Return the keys of pictures, also of those in a layout that is refused later."""
    return [key for key, values in data_sets.items() if _is_camera(key, values)]


def _is_camera(key: str, values: h5py.Dataset) -> bool:
    if is_encoded(values):
        is_called_so = values.dtype.kind in "uO" and "image" in key
        return (is_called_so and not _is_string(values)) or _begins_like_picture(values)
    return values.dtype == np.uint8 and values.ndim == 4 and 3 in (values.shape[1], values.shape[3])


def is_encoded(values: h5py.Dataset) -> bool:
    """Could each row be the bytes of a file: padded uint8 [T, N], or of variable length?"""
    if values.ndim == 2:
        return values.dtype == np.uint8 and is_large(values.shape[1])
    if values.ndim != 1:
        return False
    return values.dtype.kind in "SV" or _is_string(values) or _item_type(values) == np.uint8


def _item_type(values: h5py.Dataset) -> Any:
    """Return the type of the items of rows of variable length, as h5py notes it; else None."""
    return (values.dtype.metadata or {}).get("vlen")


def _is_string(values: h5py.Dataset) -> bool:
    return values.dtype.kind == "O" and _item_type(values) in (str, bytes)


def _begins_like_picture(values: h5py.Dataset) -> bool:
    return bool(len(values)) and row_bytes(values, 0).startswith((b"\xff\xd8\xff", b"\x89PNG"))


def row_bytes(values: h5py.Dataset, step: int) -> bytes:
    """Return the bytes of a stored picture without the zeros that fill up its row."""
    row = values[step]
    data = row.encode("utf-8", "surrogateescape") if isinstance(row, str) else bytes(row)
    return data.rstrip(b"\0")  # neither a JPEG nor a PNG ends with a zero


def picture_size(key: str, values: h5py.Dataset) -> tuple[int, int]:
    """Return (height, width) of pictures. Raises ValueError for a layout that is not read."""
    if is_encoded(values):
        try:
            size = pictures.size_of(row_bytes(values, 0))
        except ValueError as error:
            raise ValueError(f"{key} at step 0: {error}") from error
    elif values.dtype == np.uint8 and values.ndim == 4 and values.shape[3] == 3:
        size = values.shape[1:3]
    else:
        shape = list(values.shape)
        if values.ndim == 4 and values.shape[1] == 3:
            raise ValueError(
                f"{key} has the shape {shape}, channels first; store pictures as uint8 "
                "[T, H, W, 3], with frames.transpose(0, 2, 3, 1)"
            )
        raise ValueError(
            f"{key} holds {values.dtype} {shape}, which are no pictures; store them as uint8 "
            "[T, H, W, 3], or as the bytes of JPEG or PNG files"
        )
    if not 0 < size[0] * size[1] <= pictures.MAX_PIXELS:
        raise ValueError(f"{key} has pictures of {size[0]} x {size[1]} pixels")
    return size


# --------------------------------------------------------------------------- numbers and texts


def signal_keys(data_sets: dict[str, h5py.Dataset], schema: Schema) -> list[str]:
    """Return the keys of the numbers to read.

    These are [T, k] and [T] of observations and actions, k small, and what the schema names. Where
    an episode has no group of observations, all of its data sets count.
    """
    named = {*schema.state, *schema.action, *map(short_name, schema.signals)}
    has_observations = any(key.split("/")[0] in _OBSERVATIONS for key in data_sets)
    found = []
    for key, values in data_sets.items():
        is_usual = not has_observations or key.split("/")[0] in _ROLES
        is_small = values.ndim in (1, 2) and not is_large(int(np.prod(values.shape[1:])))
        is_number = values.dtype.kind in "fiub"
        if short_name(key) in named or key in named or (is_number and is_usual and is_small):
            found.append(key)
    return found


def read_numbers(key: str, values: h5py.Dataset) -> np.ndarray:
    """Return float32 [T, k] or [T]. Raises ValueError if these are no numbers, or too many."""
    if values.dtype.kind not in "fiub" or values.ndim == 0:
        raise ValueError(f"{key} holds {values.dtype} {list(values.shape)}, not numbers per step")
    if values.size > _MAX_NUMBERS:
        raise ValueError(f"{key} has the shape {list(values.shape)}, which is too large")
    with np.errstate(over="ignore"):  # the index names what is not finite
        array = values[()].astype(np.float32)
    return array.reshape(len(array), -1) if array.ndim > 2 else array


def read_text(group: h5py.Group, key: str) -> str | None:
    """Return a text of an episode: a data set or an attribute; None if there is none.

    An attribute may also belong to a group above, which its episodes share. Of a list of texts,
    one per step, the first is taken.
    """
    for value in _values(group, key):
        text = _as_text(value)
        if text is not None and key == "problem_info":  # LIBERO: JSON that holds the instruction
            text = _as_text(parse_json(text).get("language_instruction"))
        if text is not None:
            return text
    return None


def _values(group: h5py.Group, key: str) -> Iterator[Any]:
    item = find(group, key)
    if is_data_set(item) and (item.ndim == 0 or len(item)):
        yield item[()] if item.ndim == 0 else item[0]
    above, _, name = key.rpartition("/")
    place = find(group, above)
    while is_group(place) or is_data_set(place):
        if name in place.attrs:
            yield place.attrs[name]
        if place.name in (None, "/"):
            return
        place = place.parent


def _as_text(value: Any) -> str | None:
    while isinstance(value, list | np.ndarray) and np.ndim(value):
        if len(value) == 0:
            return None
        value = value[0] if not _is_letters(value) else "".join(value)
    if isinstance(value, bytes | np.bytes_):
        return bytes(value).decode("utf-8")
    return str(value) if isinstance(value, str) else None


def _is_letters(value: Any) -> bool:
    """LIBERO keeps a text as a list of its letters."""
    return len(value) > 1 and all(isinstance(part, str) and len(part) == 1 for part in value)


def read_flag(group: h5py.Group, key: str) -> bool:
    """Return whether a data set or an attribute holds anything but zero. Raises ValueError."""
    for value in _values(group, key):
        return bool(np.any(value))
    raise ValueError(f"has no {key}, which says whether a camera is there")


def control_frequency(file: h5py.File) -> float:
    """Return the steps per second of robomimic's env_args, 0 if the file does not say it."""
    data = find(file, "data")
    raw = data.attrs.get("env_args") if is_group(data) else None
    try:
        arguments = parse_json(raw) if isinstance(raw, str | bytes) else {}
        return float(arguments.get("env_kwargs", {}).get("control_freq") or 0)
    except (ValueError, TypeError, AttributeError):
        return 0.0


def read_splits(file: h5py.File) -> dict[str, str]:
    """Return name of an episode -> "train" or "valid", from robomimic's mask/train, mask/valid."""
    splits = {}
    for split in ("train", "valid"):
        names = find(file, f"mask/{split}")
        if is_data_set(names) and names.ndim == 1:
            for name in names[()]:
                splits[name.decode() if isinstance(name, bytes) else str(name)] = split
    return splits
