"""The manifest of an extraction: what the tree beside it was made from, and what became of it.

    <output>.manifest/options.json    what decides the tree's bytes; a run with others is refused
                      names.json      shard -> the episode folder of each of its records, and the
                                      shard's size and date when it was scanned
                      <shard>.json    the outcome of each record, once the shard is done
                      *.lock          held by whoever is at work; freed by the system when it dies

Only `extract.py` writes it. Reading the tree needs none of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mcr.errors import UserError

WRITTEN, ALREADY_THERE, SKIPPED, FAILED = "written", "already there", "skipped", "failed"
STATUSES = (WRITTEN, ALREADY_THERE, SKIPPED, FAILED)


@dataclass(frozen=True)
class Outcome:
    """What became of one record.

    status: one of STATUSES
    name:   its folder in the tree, "" if its file_path cannot be used
    offset: where its payload starts in the shard, in bytes
    steps:  its length, 0 where it was not read
    reason: the rule that skipped it or the error it failed with
    """

    status: str
    name: str
    offset: int
    steps: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Manifest:
    """The folder above, for the tree `output`.

    patience_s: how long to wait for a lock before calling it another run's
    """

    folder: Path
    output: Path
    patience_s: float = 10.0

    def begin(self, options: dict[str, Any]) -> None:
        """Start a tree, or make sure that this run continues the one begun. Raises UserError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "options.json"
        with self.exclusive("options"):
            if not path.exists():
                self._require_empty_output()
                _write_json(path, options)
            begun_with = json.loads(path.read_text())
            if "views" in begun_with:  # as cameras were called once
                begun_with["cameras"] = begun_with.pop("views")
        for key, value in options.items():
            if begun_with[key] != value:
                raise UserError(
                    f"{self.output} was begun with {key} {begun_with[key]!r}, not {value!r} (see "
                    f"{path}): use the same again, or another output folder"
                )
        self.output.mkdir(parents=True, exist_ok=True)

    def _require_empty_output(self) -> None:
        if self.output.exists() and any(self.output.iterdir()):
            raise UserError(
                f"{self.output}: not empty, and {self.folder} does not say what it holds; choose "
                "another folder, or give the manifest of its first run with --manifest"
            )

    def known_names(self, shards: tuple[Path, ...]) -> list[list[str]] | None:
        """The folder names of every shard; None if one is new or has changed: scan again."""
        kept = self._kept_names()
        pages = [kept.get(shard.name, {}) for shard in shards]
        if any(
            page.get("stamp") != _stamp(shard) for page, shard in zip(pages, shards, strict=True)
        ):
            return None
        return [page["names"] for page in pages]

    def keep_names(self, shards: tuple[Path, ...], names: list[list[str]]) -> None:
        """Keep the folder names of every shard; raise UserError if one has changed since.

        That happens when shards arrive later that bring a second recording of the same name.
        """
        with self.exclusive("options"):
            kept = self._kept_names()
            for shard, shard_names in zip(shards, names, strict=True):
                # Lengths differ where a truncated shard has been completed since.
                earlier = kept.get(shard.name, {}).get("names", [])
                for old, new in zip(earlier, shard_names, strict=False):
                    if old not in ("", new):
                        raise UserError(
                            f"{self.output} has an episode {old}, which is called {new!r} now that "
                            "the input holds other shards than before; use another output folder"
                        )
                kept[shard.name] = {"stamp": _stamp(shard), "names": shard_names}
            _write_json(self.folder / "names.json", kept)

    def _kept_names(self) -> dict[str, Any]:
        path = self.folder / "names.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_outcomes(self, shard: Path, outcomes: tuple[Outcome, ...], complete: bool) -> None:
        """Write the shard's page. `complete`: these are all its records."""
        page = {
            "bytes": shard.stat().st_size,
            "complete": complete,
            "records": [asdict(outcome) for outcome in outcomes],
        }
        _write_json(self._page(shard), page)

    def finished_outcomes(self, shard: Path, limit: int | None) -> tuple[Outcome, ...] | None:
        """The first `limit` outcomes, if nothing is left to do in this shard; else None.

        Something is left if the shard has changed, a record failed, or a folder is gone.
        """
        path = self._page(shard)
        if not path.exists():
            return None
        page = json.loads(path.read_text())
        if not page["complete"] or page["bytes"] != shard.stat().st_size:
            return None
        outcomes = []
        for record in itertools.islice(page["records"], limit):
            outcome = Outcome(**record)
            if outcome.status == WRITTEN:
                outcome = replace(outcome, status=ALREADY_THERE)
            gone = outcome.status == ALREADY_THERE and not (self.output / outcome.name).is_dir()
            if outcome.status == FAILED or gone:
                return None
            outcomes.append(outcome)
        return tuple(outcomes)

    def _page(self, shard: Path) -> Path:
        return self.folder / f"{shard.name}.json"

    @contextlib.contextmanager
    def exclusive(self, what: str) -> Iterator[None]:
        """Keep other runs out of `what`. Raises UserError if one stays in it."""
        deadline = time.monotonic() + self.patience_s
        path = self.folder / f"{what}.lock"
        with path.open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"{path}: another run extracts the same shard to the same output; "
                            "wait for it, or give each run a part of its own with --shard i/n"
                        ) from None
                    time.sleep(0.1)
                except OSError as error:
                    raise UserError(
                        f"{path}: this file system cannot lock files ({error.strerror}), so that "
                        "two runs could not be kept apart; mount it with locks (Lustre: -o flock)"
                    ) from error
            yield


def _stamp(shard: Path) -> list[int]:
    """Size and date: enough to see that a shard is not the one that was scanned."""
    status = shard.stat()
    return [status.st_size, status.st_mtime_ns]


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(path)
