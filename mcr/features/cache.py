"""A feature cache on disk: a frozen encoder's features of every frame of a data set.

    <cache>/features.npy    N steps of all episodes, V cameras: [N, V, D], spatial [N, V, D, h, w]
            features.json   the key: what computed the features, from what, with which options
            episodes.csv    name, start, length: an episode's rows begin at start

`extraction` writes it and `FeatureCache` reads it. While it is written, it is called
<cache>.partial, and `done.txt` in it lists the finished episodes, so that a killed run can be
continued. NumPy has no bfloat16, so its bit patterns are stored as uint16. Readers always get
float32.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mcr.errors import UserError, nearest, require_choice
from mcr.features.key import differences, encoder_key
from mcr.models.encoder import Encoder
from mcr.runs.atomic import remove, reserve, sync, system_errors, write_text

FORMAT = "mcr-features-1"
CACHED_OUTPUTS = ("pooled", "spatial")
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}

_FEATURES, _DESCRIPTION, _EPISODES = "features.npy", "features.json", "episodes.csv"
_JOURNAL = "done.txt"  # only while the cache is written


class FeatureCache:
    """An opened cache. Opening and pickling it is cheap: the array is mapped, not read."""

    def __init__(
        self,
        path: str | Path,
        encoder: Encoder | None = None,
        data_fingerprint: str | None = None,
    ):
        """Open a cache.

        encoder:          the encoder that must have computed it; None = not checked
        data_fingerprint: of the data that it must have been computed from; None = not checked
        Raises UserError if the folder is no cache, is unfinished, or does not match.
        """
        self.path = Path(path)
        self.description = read_description(self.path)
        expected = encoder_key(encoder) if encoder is not None else {}
        if data_fingerprint is not None:
            expected["data"] = data_fingerprint
        if stale := differences(self.description, expected):
            raise UserError(f"{self.path}: is of {stale}; extract the features again")

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureCache, (self.path,)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.description["cameras"])

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """One row per episode: name, start, length."""
        return pd.read_csv(self.path / _EPISODES, dtype={"name": str}, keep_default_na=False)

    @cached_property
    def array(self) -> np.ndarray:
        """All features as they are stored, mapped: [N, V, D] or [N, V, D, h, w].

        The dtype is float32, float16, or uint16 for the bit patterns of bfloat16.
        """
        return np.load(self.path / _FEATURES, mmap_mode="r")

    def features(
        self, episode: str | int, camera: str, steps: slice | Sequence[int] | int = slice(None)
    ) -> np.ndarray:
        """Features of some steps of an episode (name or row), float32 [..., D] or [..., D, h, w].

        The leading dimension is that of `steps`; a single step has none.
        Raises UserError for an unknown episode or camera, IndexError for a step beyond the episode.
        """
        row = self._row(episode) if isinstance(episode, str) else episode
        start, length = (int(self.episodes[key].iloc[row]) for key in ("start", "length"))
        rows = np.arange(start, start + length)[steps]
        column = self.cameras.index(require_choice("camera", camera, self.cameras))
        return from_stored(self.array[rows, column], self.description["dtype"])

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise UserError(f"{self.path}: no episode {name!r}{nearest(name, self._rows)}")
        return self._rows[name]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.episodes["name"])}


def read_description(folder: Path) -> dict[str, Any]:
    """The content of features.json. Raises UserError if the folder is no cache that we can read."""
    path = folder / _DESCRIPTION
    if not path.is_file():
        begun = bool(_partial_folders(folder))
        hint = "; it was begun, type the same command to finish it" if begun else ""
        raise UserError(f"{folder}: is no feature cache{hint}")
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); delete the folder") from error
    if description.get("format") != FORMAT:
        raise UserError(
            f"{path}: has the format {description.get('format')!r}, not {FORMAT!r}; delete the "
            "folder and extract again"
        )
    if "views" in description:  # the name of cameras in earlier versions
        description["cameras"] = description.pop("views")
    return description


# --------------------------------------------------------------------------- writing


def partial_folder(folder: Path, key: dict[str, Any]) -> Path:
    """Where a cache of this key lies while it is written: <cache>.partial.

    If something else was begun there and came to a result, it is <cache>.<hash of the key>.partial.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if not is_begun(partial) or not differences(read_description(partial), key):
        return partial
    if not (partial / _JOURNAL).is_file() or not (partial / _JOURNAL).stat().st_size:
        remove(partial)
        return partial
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder.with_name(f"{folder.name}.{digest[:8]}.partial")


def _partial_folders(folder: Path) -> list[Path]:
    """What was begun and would get the name `folder`."""
    name = re.compile(rf"{re.escape(folder.name)}(\.[0-9a-f]{{8}})?\.partial")
    paths = folder.parent.iterdir() if folder.parent.is_dir() else ()
    return [path for path in paths if name.fullmatch(path.name)]


def is_begun(partial: Path) -> bool:
    """Whether the folder is a cache that `create` made."""
    return (partial / _DESCRIPTION).is_file()


def create(
    partial: Path,
    names: Sequence[str],
    lengths: Sequence[int],
    feature_shape: Sequence[int],
    description: dict[str, Any],
) -> None:
    """Make an empty cache of these episodes. The description, which makes it one, is written last.

    The array gets its place on the disk now, because a process that writes to a mapped file of a
    full disk is killed. Raises OSError if there is no room; then nothing is left.

    feature_shape: of one frame's features, [D] or [D, h, w]
    description:   the key; its "cameras" and "dtype" decide the array's shape and dtype
    """
    remove(partial)
    partial.mkdir(parents=True)
    try:
        with system_errors(partial):
            starts = np.cumsum([0, *lengths])
            table = pd.DataFrame({"name": names, "start": starts[:-1], "length": lengths})
            table.to_csv(partial / _EPISODES, index=False)
            shape = (int(starts[-1]), len(description["cameras"]), *feature_shape)
            array = np.lib.format.open_memmap(
                partial / _FEATURES, "w+", DTYPES[description["dtype"]], shape
            )
            reserve(partial / _FEATURES, array.offset + array.nbytes)
            content = {"format": FORMAT, "shape": shape, **description}
            write_text(partial / _DESCRIPTION, json.dumps(content, indent=1) + "\n")
    except OSError:
        remove(partial)
        raise


def open_array(partial: Path) -> np.memmap:
    """The array of a cache that is being written, mapped for writing."""
    return np.lib.format.open_memmap(partial / _FEATURES, "r+")


def finish(partial: Path, folder: Path) -> None:
    """Give a cache whose episodes are all done its name."""
    (partial / _JOURNAL).unlink(missing_ok=True)
    sync(partial)
    partial.rename(folder)
    for other in _partial_folders(folder):  # of other keys: they cannot get this name any more
        remove(other)


class Journal:
    """The numbers of the finished episodes of a cache that is being written; a context manager.

    done: those that earlier runs finished
    """

    def __init__(self, partial: Path):
        self._path = partial / _JOURNAL
        self._path.touch()
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]  # the last line of a killed run may be cut short
        os.truncate(self._path, len(whole))
        self.done = {int(line) for line in whole.splitlines()}
        self._file = self._path.open("a")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, episode: int) -> None:
        """List an episode whose features are on disk."""
        self._file.write(f"{episode}\n")
        self._file.flush()
        os.fsync(self._file.fileno())


# --------------------------------------------------------------------------- numbers


def to_stored(features: Tensor, dtype: str) -> np.ndarray:
    """Features float32 on the CPU -> what is stored of them. dtype: a key of DTYPES."""
    if dtype == "bf16":
        return features.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return (features.half() if dtype == "fp16" else features).numpy()  # NumPy's cast would warn


def from_stored(stored: np.ndarray, dtype: str) -> np.ndarray:
    """What `to_stored` made -> features float32."""
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(stored, np.float32)
