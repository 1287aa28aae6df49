"""Runs campaigns: every case in a process that has limits of time and memory and can be killed.

A process does many cases, one after the other, and tells its parent how each one ended. If it dies,
or says nothing for too long, the case that it was at is a crash or a hang, and another process goes
on with the next one. The stack of a process that crashed or hung is reported with the case.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attacks import CAMPAIGNS
from attacks.campaign import Campaign, SilentLoss

GOOD = ("read", "refused")
BAD = ("silent loss", "traceback", "crash", "hang", "code run", "out of memory")
MEMORY_LIMIT = 2**30  # bytes above what the process had before the case
START_S = 600.0  # that a process may take to import and to write its sound files
_CANARY = "canary"
_STACK = "stack.txt"


@dataclass
class Result:
    """How the cases of one campaign ended. failures: (case, outcome, what was done and happened)"""

    name: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, case: int, outcome: str, detail: str) -> None:
        self.counts[outcome] += 1
        if outcome in BAD:
            self.failures.append((case, outcome, detail))
            print(f"\n{self.name}:{case} {outcome}: {detail[:300]!r}", file=sys.stderr)


def run_campaign(
    result: Result, cases: range, seed: int, seconds: float, on_case: Callable[[], Any]
) -> None:
    """Run some cases of the campaign `result.name`, and count how they end in `result`.

    seconds: that a case may take; a sound one takes 0.1 s, but the machine may be busy
    on_case: is called after each
    """
    number = cases.start
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        scratch = Path(folder)
        while number < cases.stop:
            process, messages = _start(result.name, range(number, cases.stop), seed, scratch)
            for outcome, detail in _outcomes(process, messages, seconds, scratch):
                result.add(number, outcome, detail)
                number += 1
                on_case()
            process.kill()  # it has ended, is in a hang, or has nothing left to do
            process.join()


def _start(
    name: str, cases: range, seed: int, scratch: Path
) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, name, cases, seed, scratch))
    process.start()
    theirs.close()
    return process, ours


def _outcomes(
    process: multiprocessing.process.BaseProcess,
    messages: Connection,
    seconds: float,
    scratch: Path,
) -> Iterator[tuple[str, str]]:
    """Yield (outcome, detail) of each case until the process is through, crashes or hangs."""
    what, limit = "the start of the process", START_S
    while True:
        if not messages.poll(limit):
            yield "hang", f"{what}: more than {limit:.0f} s\n{_stack(process, scratch)}"
            return
        try:
            kind, *message = messages.recv()
        except EOFError:
            process.join()
            yield "crash", f"{what}: exit code {process.exitcode}\n{_stack(process, scratch)}"
            return
        if kind == "through":
            return
        if kind == "begins":
            (what,) = message
        elif kind == "ended":
            outcome, detail = message
            yield outcome, f"{what}: {detail}"
            what = "making the next case"
        limit = seconds


def _stack(process: multiprocessing.process.BaseProcess, scratch: Path) -> str:
    """Return where a process is or died."""
    if process.is_alive() and process.pid:
        os.kill(process.pid, signal.SIGUSR1)
        process.join(1)
    path = scratch / _STACK
    return path.read_text(errors="replace")[:5000] if path.exists() else ""


# --------------------------------------------------------------------------- in the process


def _work(connection: Connection, name: str, cases: range, seed: int, scratch: Path) -> None:
    _be_quiet()
    stack = (scratch / _STACK).open("w")
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR1, stack)
    campaign = CAMPAIGNS[name]()
    sound = scratch / "sound"
    shutil.rmtree(sound, ignore_errors=True)
    sound.mkdir()
    campaign.sound(sound)
    connection.send(("ready",))
    for number in cases:
        folder = scratch / f"case-{number}"
        what = _damage(campaign, sound, folder, f"{seed} {name} {number}")
        connection.send(("begins", what))
        outcome, detail = _outcome(lambda: campaign.read(folder))  # noqa: B023
        if any(folder.rglob(_CANARY)):
            outcome, detail = "code run", what
        connection.send(("ended", outcome, detail))
        shutil.rmtree(folder, ignore_errors=True)
    connection.send(("through",))


def _damage(campaign: Campaign, sound: Path, folder: Path, seed: str) -> str:
    """Make a damaged copy. A damage that the writer of a format refuses is drawn anew."""
    for attempt in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        campaign.copy(sound, folder)
        with contextlib.suppress(Exception):
            return campaign.damage(folder, random.Random(f"{seed} {attempt}"))
    campaign.damage(folder, random.Random(seed))
    raise AssertionError("twenty damages failed")


def _be_quiet() -> None:
    """Send what libraries print nowhere, and leave no core files."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(read: Callable[[], None]) -> tuple[str, str]:
    from mcr.errors import UserError

    before = _memory("VmRSS")
    _forget_peak()
    limit = _memory("VmData") + MEMORY_LIMIT
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        read()
        outcome, detail = "read", ""
    except UserError as error:
        outcome, detail = "refused", str(error)
    except SilentLoss as error:
        outcome, detail = "silent loss", str(error)
    except MemoryError:
        outcome, detail = "out of memory", traceback.format_exc()
    except BaseException:
        outcome, detail = "traceback", traceback.format_exc()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    if _memory("VmHWM") > before + MEMORY_LIMIT:
        outcome = "out of memory"
    return outcome, detail


def _memory(key: str) -> int:
    """Return bytes that this process has."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
