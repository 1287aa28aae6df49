"""Source: one format of robot data. Everything that opens data goes through this protocol.

A source lists its parts. A part is the unit of parallel work: a shard, some folders, a table. It
travels to a worker process, which reads its episodes.

Frames are byte ranges: an episode says in which file, or in which files, the JPEG or PNG bytes of
its frames lie. A format whose pictures cannot be addressed so (video, HDF5, parquet) has a decoder
instead, and training uses a pack made with it (`mcr/data/pack.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from mcr.data.episode import Episode
from mcr.data.schema import Schema
from mcr.errors import UserError

WORTH_PROCESSES = 2**28  # bytes of data; fewer are indexed sooner than processes start

# What reading a damaged file raises, by way of the libraries that read it. It costs one episode.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def sentence(error: BaseException) -> str:
    """Return what a damaged file says. Errors of libraries quote a key or may say nothing."""
    if isinstance(error, MemoryError):
        return "needs more memory than this process may use"
    if isinstance(error, UserError | ValueError) and str(error):
        return str(error)
    return f"cannot be read ({type(error).__name__}: {error})"


class Part(Protocol):
    """A piece of a data set that can be pickled."""

    @property
    def size(self) -> int:
        """How much of the progress bar it fills, in the `unit` of its source."""

    def episodes(self) -> Iterator[Episode | str]:
        """Read the part in order: episodes, and a sentence for each that cannot be used.

        The sentence names the file and the episode. No damaged episode raises an exception.
        """

    def pieces(self) -> Sequence[tuple[str, Part]]:
        """Return smaller parts, of one episode if the format allows it, and what to call them."""


class Decoder(Protocol):
    """Decodes the pictures of a format that cannot be addressed. It keeps files open.

    A decoder belongs to one process. Reading episodes in their order is cheapest.
    """

    def frames(self, key: str, camera: str, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames at increasing `steps` of the episode `key`: uint8 [H, W, 3], RGB.

        Raises UserError that names file, episode and step if one cannot be decoded.
        """

    def close(self) -> None:
        """Close the files."""


class Source(Protocol):
    """A data set in one format.

    kind:   name of the format, as the index notes it
    unit:   what the sizes of the parts count, for the progress bar
    path:   the data set: a folder, or a file
    root:   the folder that `Pictures.file` is relative to
    name:   what the data set calls itself, or the name of its folder
    schema: what was given, or what is known of this data set, or an empty one. Its `hz` is filled
            in if the format says it; its `language` too.
    cameras: camera -> key; names of all cameras that an episode may have, in order
    """

    kind: ClassVar[str]
    unit: ClassVar[str]
    path: Path
    root: Path
    name: str
    schema: Schema
    cameras: dict[str, str]

    def __init__(self, path: Path, schema: Schema | None = None):
        """Open a data set.

        schema: None = the schema of the package that is meant for it, if there is one

        Raises UserError if it is damaged, or lacks what the schema names, with the nearest name.
        """

    @staticmethod
    def recognises(path: Path) -> bool:
        """Does an existing file or folder hold a data set of this format? This is cheap."""

    def parts(self) -> Sequence[Part]:
        """All parts, in the order in which the index stores their steps."""

    def is_small(self) -> bool:
        """Would starting worker processes take longer than reading the data here?"""

    def stamp(self) -> dict[str, int]:
        """Return values that change if the data set changes. This is cheap."""

    def lacks(self) -> list[str]:
        """Return a sentence for what is missing of the data set as a whole, such as shards."""

    def decoder(self) -> Decoder | None:
        """Return a decoder of the pictures; None if frames are byte ranges or files."""
