"""Campaign: one kind of file, how it is damaged, and how `mcr` reads it.

    sound(folder)          write sound files, once per process
    damage(folder, draw)   damage a copy of them
    read(folder)           let `mcr` read the copy as far as it can

`read` returns normally if what it got is what the files hold, or less with a named problem. It
raises UserError if the files are refused, and SilentLoss if something is missing without a word.
Anything else that it raises is a bug of `mcr`.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path


class SilentLoss(Exception):
    """Less was read than the files hold, and nothing said so."""


class Campaign:
    def sound(self, folder: Path) -> None:
        """Write sound files into an empty folder."""
        raise NotImplementedError

    def damage(self, folder: Path, draw: random.Random) -> str:
        """Damage a copy of the sound files. Return what was done, for the report.

        A file must be replaced, not changed in place, because copies are hard links.
        """
        raise NotImplementedError

    def read(self, folder: Path) -> None:
        raise NotImplementedError

    def copy(self, source: Path, folder: Path) -> None:
        """Copy the sound files for one case."""
        shutil.copytree(source, folder, copy_function=os.link, symlinks=True)
