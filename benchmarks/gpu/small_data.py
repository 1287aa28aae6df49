#!/usr/bin/env python
"""A data set small enough to be carried to a machine that has a GPU and no access to the data.

    python benchmarks/gpu/small_data.py shrink TREE FILE.tar.xz [--side 96] [--quality 50]
    python benchmarks/gpu/small_data.py expand FILE.tar.xz TREE

`shrink` takes a tree, which `mcr extract` makes of any data set. It makes each picture smaller, and
one AVIF sequence of each camera's pictures: about 0.4 kB for a picture of 96 lines, a sixth of what
a JPEG takes. All else is kept as it is. `expand` makes a tree of PNGs again. The pictures are not
those of the original: this is for comparing recipes, not for a release. Needs Pillow 11.3 or later.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from PIL import features
from small_episodes import expand_episode, shrink_episode

from mcr.errors import UserError, command_line
from mcr.runs.atomic import atomic_path
from mcr.runs.processes import ordered_map, progress_bar


@command_line
def main() -> None:
    options = parse()
    if not features.check("avif"):
        raise UserError("this Pillow cannot read AVIF: pip install 'pillow>=11.3'")
    options.action(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(required=True)
    shrinking = actions.add_parser("shrink", help="tree -> archive")
    shrinking.add_argument("tree", type=Path)
    shrinking.add_argument("archive", type=Path)
    shrinking.add_argument("--side", type=int, default=96, help="pixels of the shorter side")
    shrinking.add_argument("--quality", type=int, default=50, help="1 .. 100")
    shrinking.add_argument("--workers", type=int, default=0, help="processes; 0 = all cores")
    shrinking.set_defaults(action=shrink)
    expanding = actions.add_parser("expand", help="archive -> tree")
    expanding.add_argument("archive", type=Path)
    expanding.add_argument("tree", type=Path)
    expanding.add_argument("--workers", type=int, default=0, help="processes; 0 = all cores")
    expanding.set_defaults(action=expand)
    return parser.parse_args()


# --------------------------------------------------------------------------- tree -> archive


def shrink(options: argparse.Namespace) -> None:
    episodes = sorted(path for path in options.tree.iterdir() if (path / "other_data.pkl").exists())
    if not episodes:
        raise UserError(f"{options.tree}: holds no episode; make a tree with mcr extract")
    work = partial(shrink_episode, side=options.side, quality=options.quality)
    small = ordered_map(work, episodes, options.workers)
    with atomic_path(options.archive) as unfinished, tarfile.open(unfinished, "w:xz") as archive:
        for files in progress_bar(small, "shrinking", "episode", len(episodes)):
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    print(f"{options.archive}: {options.archive.stat().st_size / 2**20:.1f} MiB")


# --------------------------------------------------------------------------- archive -> tree


def expand(options: argparse.Namespace) -> None:
    if options.tree.exists():
        raise UserError(f"{options.tree} exists; remove it or choose another folder")
    with atomic_path(options.tree) as tree, tempfile.TemporaryDirectory() as folder:
        with tarfile.open(options.archive) as archive:
            archive.extractall(folder, filter="data")
        tree.mkdir(parents=True)
        episodes = sorted(Path(folder).iterdir())
        made = ordered_map(partial(expand_episode, tree=tree), episodes, options.workers)
        for _ in progress_bar(made, "expanding", "episode", len(episodes)):
            pass
    print(f"{options.tree}: {len(episodes)} episodes")


if __name__ == "__main__":
    main()
