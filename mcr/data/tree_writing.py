"""Writing the PNG/pickle tree that `sources/tree.py` reads.

    <root>/<name>/<camera>/{0..T-1}.png | .jpg
                  language_instruction{,_2,_3}/0.txt
                  other_data.pkl        see `other_data.py`

`write_episode` is for people who convert their own recordings. Extraction uses
`write_episode_folder`, which takes pictures that are encoded already.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mcr.data import pictures as codec
from mcr.data.episode import Origin, safe_name
from mcr.data.other_data import OTHER_DATA, write_other_data
from mcr.data.schema import LANGUAGES
from mcr.errors import UserError
from mcr.runs.atomic import remove

PARTIAL_PREFIX = ".partial-"  # of a folder that is being written; no reader takes it for an episode


def write_episode(
    root: str | Path,
    name: str,
    frames: Mapping[str, np.ndarray | Sequence[np.ndarray]],
    state: np.ndarray,
    action: np.ndarray,
    text: str = "",
    session: str = "",
) -> Path:
    """Write one episode of T steps to the tree `root`, and return its folder.

    name:    of the folder; ":" and "/" become "_"
    frames:  camera -> T pictures, uint8 [T, H, W, 3], RGB; cameras may differ in size
    state:   [T, S], finite numbers
    action:  [T, A], finite numbers; action[t] is what the robot was told to do at frame t
    text:    the instruction
    session: what recordings of one sitting share. Held-out episodes are chosen by session.

    A converter of one's own recordings:

        for number, path in enumerate(sorted(Path("recordings").glob("*.npz"))):
            recording = np.load(path)
            mcr.write_episode(
                "my_tree",
                f"episode_{number:05d}",
                frames={"front": recording["front"], "wrist": recording["wrist"]},
                state=recording["joints"],
                action=recording["commands"],
                text=str(recording["task"]),
                session=path.name[:10],  # the date
            )

    The folder appears when it is complete and on disk. Raises UserError for an unsafe name, for an
    episode that exists, and for lengths, shapes, types and values that do not fit.
    """
    root = Path(root)
    try:
        name = safe_name(name)
        cameras = {safe_name(camera): camera for camera in frames}
    except ValueError as error:
        raise UserError(f"{root}: {error}; choose a plain name") from error
    place = root / name
    if place.exists():
        raise UserError(f"{place}: exists already; choose another name or delete it")
    if set(cameras) & {*LANGUAGES, OTHER_DATA} or not cameras:
        raise UserError(f"{place}: the cameras are {list(frames)}; give at least one, with a name")
    signals = {
        "state": _numbers(place, "state", state),
        "action": _numbers(place, "action", action),
    }
    lengths = {key: len(values) for key, values in signals.items()}
    lengths |= {camera: len(frames[camera]) for camera in cameras.values()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise UserError(f"{place}: all must have as many steps, at least 1, but have {lengths}")
    encoded = {
        folder: _encoded(place, camera, frames[camera]) for folder, camera in cameras.items()
    }
    texts = {LANGUAGES[0]: text} if text else {}
    root.mkdir(parents=True, exist_ok=True)
    write_episode_folder(
        root, name, encoded, ".png", texts, signals, Origin(name, session=session or name)
    )
    return place


def _numbers(place: Path, key: str, values: np.ndarray) -> np.ndarray:
    """Return float32 [T, D]. Raises UserError if `values` are no such numbers."""
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise UserError(f"{place}: {key} is {array.dtype} {array.shape}; give numbers [T, D]")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        step = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise UserError(f"{place}: {key} is not finite at step {step}")
    return array


def _encoded(
    place: Path, camera: str, frames: np.ndarray | Sequence[np.ndarray]
) -> Iterable[bytes]:
    """Encode the pictures of a camera one by one. Raises UserError for a wrong shape or dtype."""
    shape = np.shape(frames[0])
    for step, frame in enumerate(frames):
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise UserError(
                f"{place}: {camera} at step {step} is {frame.dtype} {frame.shape}; give uint8 "
                "[H, W, 3], RGB"
            )
        if frame.shape != shape:
            raise UserError(f"{place}: {camera} at step {step} is {frame.shape}, before {shape}")
        yield codec.encode_png(np.ascontiguousarray(frame))


def write_episode_folder(
    root: Path,
    name: str,
    pictures: Mapping[str, Iterable[bytes]],
    suffix: str,
    texts: Mapping[str, str],
    signals: Mapping[str, np.ndarray],
    origin: Origin,
) -> None:
    """Write `<root>/<name>`. The folder gets its name once it is complete and on disk.

    pictures: camera -> the content of its files, which have this `suffix`
    texts:    name of its folder -> instruction

    Replaces what a killed run has left. Raises OSError (disk full, ...), and ValueError that names
    camera and step if `pictures` raises one. Nothing of the episode is left behind then.
    """
    partial = root / f"{PARTIAL_PREFIX}{name}"
    remove(partial)
    try:
        for camera, contents in pictures.items():
            folder = partial / safe_name(camera)
            folder.mkdir(parents=True)
            step = 0
            try:
                for data in contents:
                    (folder / f"{step}{suffix}").write_bytes(data)
                    step += 1
            except ValueError as error:
                raise ValueError(f"{camera} at step {step}: {error}") from error
        for key, text in texts.items():
            (partial / key).mkdir()
            (partial / key / "0.txt").write_text(text, encoding="utf-8")
        write_other_data(partial / OTHER_DATA, signals, origin)
        _sync_file_system(partial)
        partial.rename(root / name)
    finally:
        remove(partial)


def _sync_file_system(folder: Path) -> None:
    """Bring the file system of `folder` to the disk.

    This is one `syncfs` instead of one `fsync` per picture, as in `runs/atomic.py`. Those cost a
    fifth of the CPU time of an extraction, and on spinning disks most of its wall time.
    """
    if _syncfs is None:
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _syncfs(handle) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
    finally:
        os.close(handle)


_syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)  # Linux; Python has no name
