"""`other_data.pkl`: the signals of an episode in the PNG/pickle tree, written and read safely.

Pickles are read by `safe_pickle.py`, which admits only NumPy arrays and builtin containers, so a
downloaded tree cannot run code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mcr.data import safe_pickle
from mcr.data.episode import Origin
from mcr.data.regular_files import read_bytes
from mcr.errors import UserError

OTHER_DATA = "other_data.pkl"
_MAX_BYTES = 2**27


def other_data(signals: Mapping[str, np.ndarray], origin: Origin) -> dict[str, Any]:
    """Return the content of `other_data.pkl` as upstream's script lays it out.

    signals: float32 [T, D] or [T], or bool [T]

    "cartesian_position" (6), "gripper_position" (1), "joint_position" (7), "action" (7): lists of
    T float64 arrays; "action_dict": list of T dicts of arrays; "discount", "is_first", "is_last",
    "is_terminal": lists of T scalars. We also keep "reward", "lab", "outcome" and "file_path".
    Signals of other robots are laid out in the same way: those called "a/b" are the entry "b" of
    the dicts "a". The numbers have float32 precision. "session", "date" and "split" are there if
    neither the name nor the lab tells them; an absent split is "train" or none.
    """
    data: dict[str, Any] = {
        key: list(values.astype(np.float64))
        for key, values in signals.items()
        if values.ndim == 2 and "/" not in key
    }
    data |= _groups(signals)
    data |= {k: v.tolist() for k, v in signals.items() if v.ndim == 1 and "/" not in k}
    data |= {"lab": origin.lab, "outcome": origin.outcome, "file_path": origin.file_path}
    if origin.session not in ("", default_session(origin.name, origin.lab)):
        data["session"] = origin.session
    if origin.date not in ("", date_of(origin.name)):
        data["date"] = origin.date
    if origin.split not in ("", "train"):
        data["split"] = origin.split
    return data


def date_of(name: str) -> str:
    """Return the date that an episode's name begins with, YYYY-MM-DD, or ""."""
    found = re.match(r"\d{4}-\d{2}-\d{2}(?=_|\Z)", name)
    return found[0] if found else ""


def default_session(name: str, lab: str = "") -> str:
    """Return the session of an episode of a tree that does not state one.

    Recordings of one lab on one day share it, if the name begins with the date as DROID's names do.
    Any other episode is a session of its own.
    """
    date = date_of(name)
    return f"{lab}/{date}" if date else name


def _groups(signals: Mapping[str, np.ndarray]) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return the signals "a/b" as a list of T dicts "a" that hold arrays "b"."""
    groups: dict[str, list[dict[str, np.ndarray]]] = {}
    for key, values in signals.items():
        group, slash, name = key.partition("/")
        if slash:
            steps = groups.setdefault(group, [{} for _ in values])
            for step, value in zip(steps, values.astype(np.float64), strict=True):
                step[name] = np.atleast_1d(value)
    return groups


def write_other_data(path: Path, signals: Mapping[str, np.ndarray], origin: Origin) -> None:
    """Write `other_data(signals, origin)` as a pickle that NumPy 1 and 2 both load."""
    with path.open("wb") as file:
        _PortablePickler(file, protocol=4).dump(other_data(signals, origin))


class _PortablePickler(pickle.Pickler):
    """Stores an array as a call of `numpy.frombuffer(bytes, dtype)`.

    NumPy's own reduction names a private module that moved between NumPy 1 and NumPy 2.
    """

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, np.ndarray) and obj.ndim == 1:
            return np.frombuffer, (obj.tobytes(), obj.dtype.str)
        return NotImplemented


def read_other_data(path: Path) -> dict[str, Any]:
    """Load `other_data.pkl` without executing anything from the file; see `safe_pickle.py`.

    Raises UserError for a damaged or malicious file and OSError for one that cannot be opened.
    """
    try:
        data = safe_pickle.load(read_bytes(path, _MAX_BYTES))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path}: damaged pickle ({type(error).__name__}: {error})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, not a dict of lists")
    return data
