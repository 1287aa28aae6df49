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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcr.data.episode import Origin, safe_name
from mcr.data.other_data import OTHER_DATA, default_session, write_other_data
from mcr.data.pictures import encode_png
from mcr.data.schema import LANGUAGES
from mcr.errors import UserError
from mcr.runs.atomic import remove

Frames = np.ndarray | Sequence[np.ndarray]

PARTIAL_PREFIX = ".partial-"  # of a folder that is being written; no reader takes it for an episode


def write_episode(
    root: str | Path,
    name: str,
    frames: Mapping[str, Frames],
    state: Any,
    action: Any,
    text: str = "",
    session: str = "",
) -> Path:
    """Write one episode of T steps as the folder `<root>/<name>` of a tree, and return the folder.

    root:    the tree; it is made if it does not exist
    name:    of the episode, for example "episode_000"
    frames:  camera -> its T frames, uint8 [T, H, W, 3], RGB, or a list of T arrays [H, W, 3].
             Cameras may differ in size. The frames are stored losslessly, as PNGs
    state:   numbers [T, S] or [T], stored as float32; None = there is none
    action:  numbers [T, A] or [T], stored as float32: what was commanded at each step; None = there
             is none
    text:    the instruction
    session: what episodes of one sitting share, for example the day, so that a validation split
             does not cut it; "" = the date if the name begins with one, such as 2026-01-31_..., or
             else every episode is a session of its own

    The folder appears when it is complete and on the disk. Episodes can be written by several
    processes at once. Raises UserError if lengths differ, an array has another shape or type or
    holds NaN or infinity, or the name exists or is not safe.

    A converter of any recordings, here of a folder of NPZ files::

        import sys
        from pathlib import Path

        import numpy as np
        import mcr

        for path in sorted(Path(sys.argv[1]).glob("*.npz")):
            recorded = np.load(path)
            mcr.write_episode(
                sys.argv[2],
                name=path.stem,
                frames={"front": recorded["rgb_front"], "hand": recorded["rgb_hand"]},
                state=np.concatenate([recorded["joints"], recorded["gripper"]], axis=1),
                action=recorded["target"],
                text=str(recorded["task"]),
            )
    """
    root = Path(root)
    folder = _free_folder(root, name)
    place = f"episode {name!r}"
    if not frames:
        raise UserError(f"{place}: frames is empty; give at least one camera")
    for camera, pictures in frames.items():
        _check_camera(place, camera, pictures)
    signals = {
        key: _numbers(f"{place}: {key}", values)
        for key, values in (("state", state), ("action", action))
        if values is not None
    }
    lengths = {camera: len(pictures) for camera, pictures in frames.items()}
    lengths |= {key: len(values) for key, values in signals.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{length} of {key}" for key, length in lengths.items())
        raise UserError(f"{place}: has different numbers of steps: {shown}")
    if not isinstance(text, str) or not isinstance(session, str):
        raise UserError(f"{place}: text={text!r} and session={session!r} must be texts")
    root.mkdir(parents=True, exist_ok=True)
    write_episode_folder(
        root,
        name,
        {camera: _encode(pictures) for camera, pictures in frames.items()},
        ".png",
        {LANGUAGES[0]: text} if text else {},
        signals,
        Origin(name, session or default_session(name)),
    )
    return folder


def _free_folder(root: Path, name: str) -> Path:
    """Return the folder of a new episode. Raises UserError if the name is taken or not safe."""
    try:
        safe = safe_name(name)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{error}; choose a plain name, such as 'episode_000'") from error
    if safe != name:
        raise UserError(f"the name {name!r} has ':' or '/' in it; {safe!r} would do")
    folder = root / name
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists; choose another name, or delete it first")
    return folder


def _check_camera(place: str, camera: str, frames: Frames) -> None:
    """Raise UserError unless frames are uint8 [H, W, 3], of one size, and their name is safe."""
    try:
        is_safe = safe_name(camera) == camera and camera not in (*LANGUAGES, OTHER_DATA)
    except (ValueError, TypeError, AttributeError):
        is_safe = False
    if not is_safe:
        raise UserError(f"{place}: {camera!r} is no name of a camera; choose one such as 'front'")
    if len(frames) == 0:
        raise UserError(f"{place}: {camera} has no frames")
    size = np.shape(frames[0])
    for step, frame in enumerate(frames):
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or not frame.size:
            raise UserError(
                f"{place}: {camera} at step {step} is {frame.dtype} {list(frame.shape)}, not "
                f"uint8 [H, W, 3]{_advice(frame)}"
            )
        if frame.shape != size:
            raise UserError(
                f"{place}: {camera} at step {step} is {frame.shape[:2]} (height, width), at step 0 "
                f"{size[:2]}"
            )


def _advice(frame: np.ndarray) -> str:
    if frame.ndim == 3 and frame.shape[0] == 3 and frame.shape[-1] != 3:
        return "; channels come last: use frame.transpose(1, 2, 0)"
    if frame.dtype.kind == "f":
        return "; numbers in [0, 1] become (255 * frame).round().astype(np.uint8)"
    return ""


def _numbers(place: str, values: Any) -> np.ndarray:
    """Return float32 [T, D] or [T]. Raises UserError for anything else, NaN and infinity."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{place} has steps of different sizes ({error})") from error
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2) or not array.size:
        raise UserError(f"{place} is {array.dtype} {list(array.shape)}, not numbers [T, D] or [T]")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        step = int(np.argwhere(~np.isfinite(array))[0][0])
        raise UserError(f"{place} at step {step} is NaN, infinite or too large for float32")
    return array


def _encode(frames: Iterable[np.ndarray]) -> Iterator[bytes]:
    return (encode_png(np.ascontiguousarray(frame)) for frame in frames)


# --------------------------------------------------------------------------- the folder


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
        partial.mkdir(parents=True)
        for camera, contents in pictures.items():
            folder = partial / safe_name(camera)
            folder.mkdir()
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
