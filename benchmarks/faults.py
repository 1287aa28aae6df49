#!/usr/bin/env python
"""Kills every command that writes at random moments, and sees whether anything is lost.

    python benchmarks/faults.py [--kills 100] [--seed 0] [--only extract index ...]

Extraction, indexing, packing, training, feature extraction, export and cleaning run on small data.
Each is first left in peace, which gives the bytes to expect. Then it is killed with `kill -9` at a
random moment of its run and started again at once, until it comes to its end; then a new round
begins, until it was killed --kills times. The kill hits the command with all its processes, the
command alone, or one of its worker processes.

After each kill, everything that has its final name must be whole. At the end of a round all bytes
must be those of the run in peace, and no other file may be there.

    finished      rounds, each of which ended with the command's success
    identical     rounds that ended with the bytes of the run in peace
    other deflate PNGs with the same pixels in other bytes
    losses        what was damaged, missing or different after a kill or at the end
    leftovers     files at the end of a round that the run in peace does not leave

Exits with 1 if anything was lost. The commands run in forks of this process, and so do their
workers, which are spawned otherwise. What they import is imported already, so that a kill meets
work and not imports. About 1 s per kill.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import hashlib
import importlib
import json
import multiprocessing.context
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

import torch

import mcr
import mcr.commands.clean
import mcr.commands.export
import mcr.commands.extract
import mcr.commands.features
import mcr.commands.index
import mcr.training.train  # noqa: F401  imported here, so that the forks need not
from mcr import cli
from mcr.data import pack, pictures
from mcr.errors import plain_errors
from mcr.runs import processes
from mcr.runs.atomic import remove
from mcr.runs.processes import processor, progress_bar

ROOT = Path(__file__).resolve().parents[1]
SHARDS = ROOT / "tests/data/droid_tfds/1.0.0"
VIDEOS = ROOT / "tests/data/reference/lerobot/lerobot_v3_video"
TRAINING = (
    "--config-name=scratch",
    "device=cpu", "batch_size=2", "val_clips=2", "pictures_every=0", "log_every=1", "save_every=2",
    "steps=8", "validate_every=8", "keep_checkpoints=9", "model.backbone=timm:test_resnet",
    "model.image_size=32", "data.workers=1", "data.selection.min_frames=30",
    "data.selection.val_fraction=0.25",
)  # fmt: skip
COMMANDS = ("extract", "index", "pack", "clean", "train", "features", "export")
_SPEED = ("images_per_s", "data_wait")  # in the metrics of a step; no two runs agree in them
_PATIENCE_S = 300


@dataclass
class Row:
    """What happened to one command."""

    NAMES: ClassVar = ("all", "command", "worker")

    kills: Counter = field(default_factory=Counter)
    finished: int = 0
    identical: int = 0
    other_deflate: int = 0
    losses: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    seconds: float = 0


# --------------------------------------------------------------------------- processes


def fork(arguments: Sequence[str], log: Path) -> int:
    """Run `mcr` with these arguments in a child, the leader of its process group. Its number."""
    process = os.fork()
    if process:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(process, process)  # both do this, because either may come first
        return process
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        sys.argv = ["mcr", *arguments]
        with plain_errors():
            code = cli.run(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # is shown; the caller finds it in the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _ForkedWorker(multiprocessing.context.ForkProcess):
    """A worker that ignores Ctrl-C, as those of `mcr.runs.processes` do."""

    def start(self) -> None:
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class _Fork(multiprocessing.context.ForkContext):
    Process = _ForkedWorker


def import_what_it_imports(arguments: Sequence[str], log: Path) -> None:
    """Run a command in a child, and import here what it has imported there."""
    listing = log.with_suffix(".modules")

    def work() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        with contextlib.suppress(SystemExit):
            cli.run(arguments)
        listing.write_text("\n".join(sys.modules))

    in_child(work)
    for name in listing.read_text().splitlines():
        with contextlib.suppress(Exception):  # it is there under another name
            importlib.import_module(name)


def wait(process: int, seconds: float) -> int | None:
    """Return the exit code of a child, negative for a signal; None if it runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def children(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(state[1]) == process and state[0] != "Z":
                found.append(int(folder.name))
    return found


def kill(process: int, chance: random.Random) -> tuple[str, int]:
    """Kill the command with all its processes, alone, or a worker of it.

    Returns what was killed, and the command's exit code.
    """
    workers = children(process)
    what = chance.choice(Row.NAMES if workers else Row.NAMES[:1])
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        if what == "all":
            os.killpg(process, signal.SIGKILL)
        else:
            victim = process if what == "command" else chance.choice(workers)
            os.kill(victim, signal.SIGKILL)
    code = wait(process, _PATIENCE_S)
    if code is None:
        os.killpg(process, signal.SIGKILL)
        raise RuntimeError(f"{what} was killed, and after {_PATIENCE_S} s the command still runs")
    return what, code


def adopt_orphans() -> None:
    """Make the children of a killed command those of this process, which takes note of their end.

    Otherwise they would wait, dead, for the first process of the machine to do so.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def bury_orphans(seconds: float = 60) -> int:
    """Wait for all children to end. Returns how many have not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return 0
    return len(children(os.getpid()))


# --------------------------------------------------------------------------- content


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder, hidden ones included."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        total.update(f"{file.relative_to(path)} {file.is_dir() or digest(file)}\n".encode())
    return total.hexdigest()


def digests(*paths: Path) -> dict[str, str]:
    """Path -> digest of every file in these folders."""
    files = [file for path in paths for file in [path, *path.rglob("*")] if file.is_file()]
    return {str(file): digest(file) for file in files}


@functools.lru_cache(maxsize=1000)
def _content(path: Path, changed: int) -> str:
    """SHA-256 of what a checkpoint holds.

    Its bytes also depend on which equal objects were one object when it was written. This happens
    in a child, because torch starts threads, which this process must not have when it forks.
    """
    reader, writer = os.pipe()

    def work() -> None:
        total = hashlib.sha256()
        for key, value in flatten(torch.load(path, weights_only=True)).items():
            value = value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)
            total.update(
                f"{key} ".encode() + (value if isinstance(value, bytes) else value.encode())
            )
        os.write(writer, total.hexdigest().encode())

    in_child(work)
    os.close(writer)
    with os.fdopen(reader) as file:
        return file.read()


def content(checkpoint: Path) -> str:
    return _content(checkpoint, checkpoint.stat().st_mtime_ns)


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Everything in nested dictionaries and lists, by its place."""
    if not isinstance(value, dict | list | tuple):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, part in items for k, v in flatten(part, f"{prefix}/{key}").items()}


def entries(folder: Path) -> list[Path]:
    """What is in a folder under its final name."""
    return [p for p in folder.iterdir() if p.name[0] != "."] if folder.is_dir() else []


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def metrics(run_dir: Path) -> str:
    """What the log of a training run says, without its speed; the lines must be in order."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in _SPEED} for line in lines]
    return json.dumps(kept)


# --------------------------------------------------------------------------- scenes


@dataclass
class Scene:
    """A command on its data: where it writes, and what of that must be the same in the end.

    folder:    everything that the command writes lies here
    arguments: of `mcr`
    prepare:   makes `folder` as a user has it before the command; it is empty by then
    published: the final names that must be whole after every kill, relative to `folder`; each is
               there or not. Of a folder that grows, each entry is one of them
    compared:  what must be the same at the end
    look:      what must be the same of something that is published
    """

    name: str
    folder: Path
    arguments: Sequence[str]
    published: Callable[[], list[Path]]
    compared: Callable[[], dict[str, str]]
    prepare: Callable[[], object] = lambda: None
    look: Callable[[Path], str] = digest


def copy(source: Path, target: Path) -> Path:
    return shutil.copytree(source, target, copy_function=shutil.copyfile)


def in_child(work: Callable[[], object]) -> None:
    """Do something that starts torch's threads, which this process must not have when it forks."""
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("a preparation failed")


def write_few(tree: Path, target: Path) -> None:
    """A tree of a few frames, because an encoder takes long for many."""
    for number, episode in enumerate(sorted(entries(tree))):
        files = [episode / "exterior_image_1_left" / f"{step}.png" for step in range(8)]
        frames = [pictures.decode(file.read_bytes()) for file in files]
        mcr.write_episode(target, f"episode_{number}", {"front": frames}, None, None)


def spoil(tree: Path) -> None:
    """Give every other episode of a tree a defect, so that cleaning has something to do."""
    for number, episode in enumerate(sorted(entries(tree))):
        if number % 2:
            next(episode.glob("*/0.*g")).write_bytes(b"no picture")


def checkpoint(desk: Path, seed: int) -> Path:
    """Weights that `prepare` has trained."""
    return desk / f"run_{seed}" / "checkpoints" / "step_00000001.pt"


def prepare(desk: Path, chosen: Collection[str]) -> None:
    """Make what these commands work on: shards, videos, trees, weights, an earlier export."""
    shards, many = copy(SHARDS, desk / "shards"), desk / "many"
    copy(VIDEOS, desk / "videos")

    def mcr_command(*arguments: object) -> None:
        log = desk / "prepare.log"
        if wait(fork([str(word) for word in arguments], log), _PATIENCE_S):
            raise RuntimeError(f"a preparation failed:\n{log.read_text()}")

    mcr_command("index", shards)
    if not {"clean", "features", "export"} & {*chosen}:
        return
    mcr_command("extract", shards, desk / "tree")
    write_few(desk / "tree", desk / "few")
    mcr_command("index", desk / "few")
    for seed in (0, 1):
        options = (f"run_dir={desk / f'run_{seed}'}", f"data.root={shards}", f"seed={seed}")
        mcr_command("train", *TRAINING, *options, "steps=1", "validate_every=1", "save_every=1")
    mcr_command("export", checkpoint(desk, 1), desk / "earlier")
    many.mkdir()
    for episode in entries(desk / "few"):
        for number in range(4):
            copy(episode, many / f"{episode.name}_{number}")
    spoil(many)


def scene(desk: Path, name: str, arguments: Sequence[object], **rest: Any) -> Scene:
    return Scene(name, desk / name, [str(word) for word in arguments], **rest)


def scenes(desk: Path) -> dict[str, Scene]:
    """All commands, in folders of their own below `desk`, which `prepare` has filled."""
    every = [*recordings_scenes(desk), *encoder_scenes(desk)]
    return {each.name: each for each in every}


def recordings_scenes(desk: Path) -> list[Scene]:
    """The commands that make something of recordings."""
    tree, index = desk / "extract" / "tree", desk / "index" / "index"
    packed, packed_index = desk / "pack" / "x.pack", desk / "pack" / "x.index"
    dirty, rejected = desk / "clean" / "tree", desk / "clean" / "rejected"
    return [
        scene(
            desk,
            "extract",
            ["extract", desk / "shards", tree, "--workers", 2],
            published=lambda: entries(tree),
            compared=lambda: digests(tree),
        ),
        scene(
            desk,
            "index",
            ["index", desk / "shards", "--index", index],
            published=lambda: [index],
            compared=lambda: digests(index),
        ),
        scene(
            desk,
            "pack",
            [
                "index",
                desk / "videos",
                "--index",
                desk / "pack" / "x.index",
                "--pack",
                "--workers",
                2,
            ],
            published=lambda: [packed_index, *packed.glob("*_*.npy")],
            compared=lambda: digests(packed),
        ),
        scene(
            desk,
            "clean",
            ["clean", dirty, "--quarantine", rejected, "--workers", 2],
            prepare=lambda: copy(desk / "many", dirty),
            published=lambda: [*entries(dirty), *entries(rejected)],
            compared=lambda: digests(dirty, rejected),
        ),
    ]


def encoder_scenes(desk: Path) -> list[Scene]:
    """The commands that make something of, or with, an encoder."""
    run, cache = desk / "train" / "run", desk / "features" / "cache"
    out = desk / "export" / "encoder"
    small = ["--workers", 1, "--batch-size", 4, "--engine", "torch"]
    return [
        scene(
            desk,
            "train",
            ["train", f"run_dir={run}", f"data.root={desk / 'shards'}", *TRAINING],
            published=lambda: entries(run / "checkpoints"),
            compared=lambda: (
                {str(path): content(path) for path in entries(run / "checkpoints")}
                | {"metrics": metrics(run)}
            ),
            look=content,
        ),
        scene(
            desk,
            "features",
            ["features", checkpoint(desk, 0), desk / "few", cache, *small],
            published=lambda: [cache],
            compared=lambda: digests(cache),
        ),
        scene(
            desk,
            "export",
            ["export", checkpoint(desk, 0), out, "--force"],
            prepare=lambda: shutil.copytree(desk / "earlier", out),
            published=lambda: [out],
            compared=lambda: digests(out),
        ),
    ]


# --------------------------------------------------------------------------- the campaign


class Campaign:
    """Kills one command again and again."""

    def __init__(self, scene: Scene, chance: random.Random, earlier: Path):
        """earlier: an export of other weights; what is replaced must be this or the new one"""
        self._scene, self._chance = scene, chance
        self._log = scene.folder.with_suffix(".log")
        self.row = Row()
        self._begin()
        import_what_it_imports(scene.arguments, self._log)
        self._begin()
        began = time.monotonic()
        if code := wait(fork(scene.arguments, self._log), _PATIENCE_S):
            raise RuntimeError(f"mcr {scene.name} ended with {code}:\n{self._log.read_text()}")
        self._duration = time.monotonic() - began
        self._expected = scene.compared()
        self._whole = {path.name: {scene.look(path)} for path in scene.published()}
        if scene.name == "export":
            self._whole["encoder"].add(digest(earlier))
        self._peaceful = scene.folder.with_suffix(".peaceful")
        scene.folder.rename(self._peaceful)
        self._names = names(self._peaceful)

    def _begin(self) -> None:
        remove(self._scene.folder)
        self._scene.folder.mkdir()
        self._scene.prepare()

    def round(self, num_kills: int, progress: Callable[[], object]) -> None:
        """Kill the command up to `num_kills` times, then let it come to its end."""
        self._begin()
        killed, code = 0, None
        while killed < num_kills:
            process, began = fork(self._scene.arguments, self._log), time.monotonic()
            code = wait(process, self._chance.uniform(0, self._duration))
            if code is not None:  # it was done before, perhaps because the machine is less busy now
                self._duration = min(self._duration, time.monotonic() - began)
                break
            what, code = kill(process, self._chance)
            killed += 1
            self.row.kills[what] += 1
            progress()
            if code not in (0, 2, -signal.SIGKILL):
                self._lose(f"after a kill of {what} it ended with {code}")
            self._check_published()
        if killed == num_kills:
            code = wait(fork(self._scene.arguments, self._log), _PATIENCE_S)
        self._finish(code)

    def _check_published(self) -> None:
        """What has its final name must be whole."""
        found = self._scene.published()
        for path in found:
            if self._scene.name == "export" and not path.exists():
                self._lose("the earlier export is gone")
            elif path.exists() and not self._is_whole(path):
                self._lose(f"{path.name} is not whole")
        gone = {*self._whole} - {path.name for path in found}
        if self._scene.name == "clean" and gone:
            self._lose(f"{len(gone)} episodes are neither in the tree nor in quarantine")

    def _finish(self, code: int | None) -> None:
        if code != 0:
            self._lose(f"left in peace after the kills, it ended with {code}")
            return
        self.row.finished += 1
        if orphans := bury_orphans():
            self._lose(f"{orphans} processes outlive the command")
        found = self._scene.compared()
        different = {
            key for key in {*found, *self._expected} if found.get(key) != self._expected.get(key)
        }
        same_pixels = {key for key in different if self._same_png(Path(key))}
        self.row.other_deflate += len(same_pixels)
        self.row.identical += not different
        for key in sorted(different - same_pixels):
            self._lose(f"{Path(key).name} differs at the end")
        extra = sorted(names(self._scene.folder) - self._names)
        self.row.leftovers += [name for name in extra if "tensorboard" not in name]

    def _is_whole(self, path: Path) -> bool:
        known = self._whole.get(path.name, ())
        return self._scene.look(path) in known or self._has_same_pixels(path)

    def _has_same_pixels(self, episode: Path) -> bool:
        """Is a folder the expected one but for PNGs with the same pixels in other bytes?"""
        found = digests(episode)
        others = [key for key, value in found.items() if self._expected.get(key) != value]
        return bool(others) and all(self._same_png(Path(key)) for key in others)

    def _same_png(self, path: Path) -> bool:
        twin = self._peaceful / path.relative_to(self._scene.folder) if path.is_absolute() else path
        if path.suffix != ".png" or not path.exists() or not twin.exists():
            return False
        return np.array_equal(*(pictures.decode(file.read_bytes()) for file in (path, twin)))

    def _lose(self, what: str) -> None:
        self.row.losses.append(what)
        tail = "\n".join(self._log.read_text().splitlines()[-15:])
        print(f"\n{self._scene.name}: {what}\n{tail}", file=sys.stderr)


def run_campaign(scene: Scene, num_kills: int, chance: random.Random, earlier: Path) -> Row:
    campaign = Campaign(scene, chance, earlier)
    row, began = campaign.row, time.monotonic()
    with progress_bar(None, f"{scene.name:8}", "kills", num_kills) as bar:
        while row.kills.total() < num_kills and len(row.losses) < 10:
            left = num_kills - row.kills.total()
            campaign.round(min(left, chance.randint(1, 6)), bar.update)
    row.seconds = time.monotonic() - began
    return row


def table(rows: dict[str, Row]) -> str:
    lines = [
        "| command | kills | of all its processes | of the command | of a worker | finished "
        "| identical | other deflate | losses | leftovers | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        kinds = " | ".join(str(row.kills[what]) for what in Row.NAMES)
        lines.append(
            f"| {name} | {row.kills.total()} | {kinds} | {row.finished} | {row.identical} | "
            f"{row.other_deflate} | {len(row.losses)} | {len(row.leftovers)} | {row.seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of when what is killed")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="default: all")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)  # of spawned workers
    torch.set_num_threads(1)  # of the forks; this process starts no threads
    pack._FRAMES_PER_UNIT = 10  # in the forks, too: several units of the small data
    processes._Spawn = _Fork  # type: ignore[misc, assignment]
    tqdm.monitor_interval = 0  # its thread may hold a lock when this process forks
    adopt_orphans()
    print(f"hardware: {processor()}; torch {torch.__version__}", file=sys.stderr)
    chosen, rows = arguments.only or COMMANDS, dict[str, Row]()
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        prepare(desk, chosen)
        everything = scenes(desk)
        for name in chosen:
            chance = random.Random(f"{arguments.seed} {name}")
            rows[name] = run_campaign(everything[name], arguments.kills, chance, desk / "earlier")
            print(table({name: rows[name]}).splitlines()[-1], file=sys.stderr)
    print(table(rows))
    for name, row in rows.items():
        for kind in ("losses", "leftovers"):
            for what, times in Counter(getattr(row, kind)).most_common(10):
                print(f"{name}: {kind}: {what} ({times})")
    killed = all(row.kills.total() >= arguments.kills for row in rows.values())
    return int(not killed or any(row.losses or row.leftovers for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
