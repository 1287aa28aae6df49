"""Pictures with masks of what is manipulated: the end effector and the task's objects.

    HDF5       robomimic's, with a mask <camera>_mask beside <camera>_image; see `mcr.data.hdf5`
    folders    pictures in one, PNG masks of the same names in the other, as SAM 2 writes them

Each HDF5 file, and each folder with pictures in it, is a task. Only the chosen frames are read.
Called by `mcr centricity`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mcr.data import pictures
from mcr.data.hdf5 import Hdf5File
from mcr.errors import UserError, nearest

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class MaskedPictures:
    """Frames of a task.

    names:  of the frames, for error messages
    images: uint8 [H, W, 3] each
    masks:  bool [H, W] each
    Raises UserError if a mask is missing, has not the size of its picture, or if all are empty.
    """

    task: str
    names: list[str]
    images: list[np.ndarray]
    masks: list[np.ndarray]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.masks):
            raise UserError(
                f"{self.task}: {len(self.images)} pictures but {len(self.masks)} masks: give each "
                "picture its own"
            )
        for name, image, mask in zip(self.names, self.images, self.masks, strict=True):
            if mask.shape != image.shape[:2]:
                raise UserError(
                    f"{name}: the mask is {_size(mask)}, the picture {_size(image)}: make masks "
                    "of the pictures as they are"
                )
        if not any(mask.any() for mask in self.masks):
            raise UserError(
                f"{self.task}: the masks of all {len(self.masks)} chosen frames are empty: "
                "gripper and objects must not be 0 in them"
            )


def _size(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape))


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    places = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
    return [items[place] for place in places.tolist()]


# --------------------------------------------------------------------------- HDF5


def read_demonstrations(path: str | Path, camera: str = "", frames: int = 64) -> MaskedPictures:
    """Evenly spaced frames of an HDF5 file, over all its episodes.

    camera: "" = the only one that has masks
    frames: the largest number of frames to choose
    Raises UserError for a file that is unreadable or lacks episodes or such a camera.
    """
    path = Path(path)
    with Hdf5File(path) as file:
        lengths = {episode: file.length(episode) or 0 for episode in file.episodes}
        chosen = _evenly([(e, step) for e, n in lengths.items() for step in range(n)], frames)
        if not chosen:
            raise UserError(f"{path}: holds no demonstrations (data/demo_0/actions)")
        camera = _camera_with_masks(path, file.observations(chosen[0][0]), camera)
        found = [_read_step(file, episode, step, camera) for episode, step in chosen]
        # recordings of ours name their task, those of robomimic their environment
        task = file.env_args.get("task") or file.env_args.get("env_name") or path.stem
    images, masks = (list(arrays) for arrays in zip(*found, strict=True))
    names = [f"{path.name} {episode} step {step}" for episode, step in chosen]
    return MaskedPictures(task, names, images, masks)


def _camera_with_masks(path: Path, observations: Collection[str], camera: str) -> str:
    seen = {key.removesuffix("_image") for key in observations if key.endswith("_image")}
    masked = {name for name in seen if f"{name}_mask" in observations}
    if camera and camera not in seen:
        raise UserError(f"{path}: has no camera {camera!r}{nearest(camera, seen)}")
    if not masked or (camera and camera not in masked):
        raise UserError(
            f"{path}: has pictures of {', '.join(sorted(seen)) or 'no camera'}, but no masks of "
            f"them (obs/{camera or '<camera>'}_mask): record them with "
            "mcr record --masks"
        )
    if not camera and len(masked) > 1:
        raise UserError(f"{path}: has masks of {', '.join(sorted(masked))}: choose one --camera")
    return camera or masked.pop()


def _read_step(
    file: Hdf5File, episode: str, step: int, camera: str
) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for key in (f"obs/{camera}_image", f"obs/{camera}_mask"):
        count = file.length(episode, key)
        if count is None or step >= count:
            raise UserError(
                f"{file.path}: {episode} has {file.length(episode)} actions but "
                f"{'no' if count is None else count} frames of {key}: record it anew"
            )
        found.append(file.read(episode, key, step))
    return found[0], found[1] != 0


# --------------------------------------------------------------------------- folders


def read_folders(
    picture_root: str | Path, mask_root: str | Path, frames: int = 64
) -> Iterator[MaskedPictures]:
    """Yield evenly spaced frames of each folder of pictures below `picture_root`, in order.

    frames: the largest number of frames to choose from a folder
    The mask of a/b/7.jpg is a/b/7.png below `mask_root`; its pixels other than 0 are marked.
    Raises UserError if a mask is missing, or a file is not a picture.
    """
    picture_root, mask_root = Path(picture_root), Path(mask_root)
    folders: dict[Path, list[Path]] = {}
    for path in sorted(picture_root.rglob("*")):
        if path.suffix.lower() in _PICTURE_SUFFIXES:
            folders.setdefault(path.parent, []).append(path)
    if not folders:
        raise UserError(f"{picture_root}: holds no pictures ({', '.join(_PICTURE_SUFFIXES)})")
    for folder, paths in folders.items():
        below = folder.relative_to(picture_root)
        chosen = _evenly(paths, frames)
        yield MaskedPictures(
            task=picture_root.name if below == Path() else below.as_posix(),
            names=[str(path) for path in chosen],
            images=[_read_picture(path) for path in chosen],
            masks=[_read_mask(mask_root / below / f"{path.stem}.png", path) for path in chosen],
        )


def _read_picture(path: Path) -> np.ndarray:
    try:
        return pictures.decode(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _read_mask(path: Path, picture: Path) -> np.ndarray:
    """bool [H, W]: what is not 0 in grey or palette masks, and not black in coloured ones."""
    if not path.is_file():
        raise UserError(f"{path}: is missing; it is to be the mask of {picture}")
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
            num_colours = len(image.getbands()) - (image.mode in ("LA", "RGBA"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: is no readable mask ({error})") from error
    return np.asarray(values if values.ndim == 2 else values[..., :num_colours].any(axis=2), bool)
