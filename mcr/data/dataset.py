"""`open_data`: robot data of any format, for people and for policies.

    data = mcr.open_data("bridge_dataset/1.0.0")
    data.episodes                                      # pandas: name, length, session, ...
    data.frames("traj_0", "image_0", [0, 5, 9])        # uint8 [3, H, W, 3]
    data.signal("state", "traj_0", slice(0, 16))       # float32 [16, D]
    steps = data.steps(chunk=16, cameras=["image_0"])  # a map-style data set for a policy

It reads through the index, as everything else does. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcr.data.frames import FrameReader
from mcr.data.index import Index, open_index
from mcr.data.pack import open_pack
from mcr.data.schema import Schema
from mcr.errors import UserError


def open_data(
    path: str | Path,
    schema: str | Path | Mapping[str, Any] | Schema | None = None,
    index: str | Path | None = None,
    pack: bool = True,
) -> RobotData:
    """Open a data set of any format: RLDS, LeRobot, HDF5, a PNG/pickle tree, videos, pictures.

    The first call reads the data once and writes an index beside it; later calls take milliseconds.

    schema: name of a schema in cfgs/data/, a YAML file, or a mapping; None = the one that is known
            of the data set, or defaults
    index:  folder of the index; None = `<path>.index`, or in the user's cache if that is read-only
    pack:   for formats whose pictures have to be decoded one after the other (video, HDF5): `steps`
            decodes all of them once, into JPEGs beside the index

    Raises UserError if there is no data set that can be read, with the reason.
    """
    return RobotData(open_index(path, index, schema=schema), pack)


class RobotData:
    """Robot data of any format. It can be pickled; every process opens its files anew.

    An episode is named by its name or by its row in `episodes`.
    """

    def __init__(self, index: Index, pack: bool = True):
        self.index = index
        self._pack = pack
        self._reader = FrameReader(index)

    def __reduce__(self) -> tuple[Any, ...]:
        return RobotData, (self.index, self._pack)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.index)

    def __repr__(self) -> str:
        index = self.index
        return (
            f"RobotData({str(index.source)!r}: {len(index):,} episodes, "
            f"{index.lengths.sum():,} steps, cameras {', '.join(index.cameras)}, "
            f"state {' + '.join(index.state) or 'none'}, "
            f"action {' + '.join(index.action) or 'none'})"
        )

    @property
    def episodes(self) -> pd.DataFrame:
        """One row per episode, sorted by name: name, length, session, instructions, ..."""
        return self.index.table.drop(columns=["start", "key"])

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of all cameras. An episode may lack some: see `size`."""
        return self.index.cameras

    @property
    def signals(self) -> dict[str, int]:
        """Signals by name, and how many numbers each has per step."""
        return {name: end - begin for name, (begin, end) in self.index.info["columns"].items()}

    @property
    def schema(self) -> Schema:
        """What the data set calls its parts."""
        return self.index.schema

    @property
    def hz(self) -> float:
        """Steps per second; 0 if nothing says it."""
        return self.index.schema.hz

    def size(self, episode: str | int, camera: str) -> tuple[int, int]:
        """(height, width) of the frames; (0, 0) if the episode lacks the camera."""
        height, width = self.index.sizes[self.index.row(episode), self.index.camera(camera)]
        return int(height), int(width)

    def frames(
        self, episode: str | int, camera: str, steps: slice | Sequence[int] | int = slice(None)
    ) -> np.ndarray:
        """Return the pictures at `steps` in full size, uint8 [n, H, W, 3], RGB; one: [H, W, 3].

        Raises UserError for an unknown episode or camera, and for a picture that cannot be read;
        IndexError for a step beyond the episode.
        """
        row, column = self.index.row(episode), self.index.camera(camera)
        wanted = np.arange(int(self.index.lengths[row]))[steps]
        ordered, places = np.unique(wanted, return_inverse=True)
        if self.index.sizes[row, column, 0] == 0:
            has = [c for i, c in enumerate(self.cameras) if self.index.sizes[row, i, 0]]
            raise UserError(
                f"{self.index.names[row].decode()}: has no camera {camera!r}, only {', '.join(has)}"
            )
        read = list(self._reader.episode(row, column, ordered.tolist()))
        shape = (len(read), *self.index.sizes[row, column], 3)
        return (np.stack(read) if read else np.zeros(shape, np.uint8))[places.reshape(wanted.shape)]

    def signal(
        self, name: str, episode: str | int, steps: slice | Sequence[int] | int = slice(None)
    ) -> np.ndarray:
        """Return a signal as it was recorded, float32 [n, D]; of one step [D].

        name: "state" or "action", as the schema names them, or any of `signals`

        Raises UserError for an unknown signal or episode; IndexError for a step beyond the episode.
        """
        row = self.index.row(episode)
        wanted = int(self.index.starts[row]) + np.arange(int(self.index.lengths[row]))[steps]
        return self.index.signals[wanted[..., None], self.index.signal_columns(name)]

    def text(self, episode: str | int) -> str:
        """Return the first instruction that is not empty, or ""."""
        return self.index.text(self.index.row(episode))

    def steps(self, **options: Any) -> Any:
        """Return a data set of single steps, for a policy: see `mcr.data.steps.Steps`."""
        from mcr.data.steps import Steps  # which needs torch

        pack = None
        if self._pack and not self.index.is_addressable:
            pack = open_pack(self.index)
        return Steps(self.index, FrameReader(self.index, pack), **options)

    def close(self) -> None:
        """Close the files."""
        self._reader.close()
