"""Runs campaigns: every case in a process that has limits of time and memory and can be killed.

A process does many cases, one after the other, and tells its parent how each one ended. If it dies,
or says nothing for too long, the case that it was at is a crash or a hang, and another process goes
on with the next one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attacks import CAMPAIGNS
from attacks.campaign import Campaign, SilentLoss

GOOD = ("read", "refused")
BAD = ("silent loss", "traceback", "crash", "hang", "code run", "out of memory")
MEMORY_LIMIT = 2**30  # bytes above what the process had before the case
_CANARY = "canary"


@dataclass
class Result:
    """How the cases of one campaign ended. failures: (case, outcome, what was done and happened)"""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, case: int, outcome: str, detail: str) -> None:
        self.counts[outcome] += 1
        if outcome in BAD:
            self.failures.append((case, outcome, detail))
            print(f"\ncase {case}: {outcome}: {detail[:200]!r}", file=sys.stderr)


def run_campaign(
    name: str, cases: range, seed: int, seconds: float, on_case: Callable[[], Any]
) -> Result:
    """Run some cases of a campaign.

    seconds: that a case may take; a sound one takes 0.1 s, but the machine may be busy
    on_case: is called after each
    """
    result = Result()
    context = multiprocessing.get_context("spawn")
    number = cases.start
    with tempfile.TemporaryDirectory(prefix="attack-") as scratch:
        while number < cases.stop:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(theirs, name, range(number, cases.stop), seed, Path(scratch))
            )
            process.start()
            theirs.close()
            what = ""
            while number < cases.stop:
                try:
                    if not ours.poll(seconds):
                        result.add(number, "hang", what)
                        break
                    kind, *message = ours.recv()
                except EOFError:
                    process.join()
                    result.add(number, "crash", f"{what}: exit code {process.exitcode}")
                    break
                if kind == "begins":
                    (what,) = message
                    continue
                outcome, detail = message
                result.add(number, outcome, f"{what}: {detail}")
                number += 1
                on_case()
            else:
                process.join()
                break
            process.kill()
            process.join()
            number += 1
            on_case()
    return result


# --------------------------------------------------------------------------- in the process


def _work(connection: Connection, name: str, cases: range, seed: int, scratch: Path) -> None:
    _be_quiet()
    campaign = CAMPAIGNS[name]()
    sound = scratch / "sound"
    shutil.rmtree(sound, ignore_errors=True)
    sound.mkdir()
    campaign.sound(sound)
    for number in cases:
        folder = scratch / f"case-{number}"
        what = _damage(campaign, sound, folder, f"{seed} {name} {number}")
        connection.send(("begins", what))
        outcome, detail = _outcome(lambda: campaign.read(folder))  # noqa: B023
        if any(folder.rglob(_CANARY)):
            outcome, detail = "code run", what
        connection.send(("ended", outcome, detail))
        shutil.rmtree(folder, ignore_errors=True)


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
