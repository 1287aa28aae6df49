"""The manifest of an extraction: what a tree was made from, and the result of each record.

    <output>.manifest/options.json    options that decide the tree's bytes; others are refused
                      names.json      shard -> the episode folder of each of its records, and the
                                      shard's size and date when it was scanned
                      <shard>.json    the result of each record, once the shard is done
                      .*.lock         held by a run at work; the system frees it when the run dies

Only extraction writes it. Readers of the tree do not need it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mcr.errors import UserError
from mcr.runs.atomic import write_text
from mcr.runs.locks import exclusive

WRITTEN, ALREADY_THERE, SKIPPED, FAILED = "written", "already there", "skipped", "failed"
STATUSES = (WRITTEN, ALREADY_THERE, SKIPPED, FAILED)


@dataclass(frozen=True)
class RecordResult:
    """The result of one record.

    status: one of STATUSES
    name:   folder in the tree; "" if its file_path cannot be used
    offset: first byte of its payload in the shard; of other formats, its place in its part
    steps:  number of steps; 0 if it was not read
    reason: the rule that skipped it, or the error
    """

    status: str
    name: str
    offset: int
    steps: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Page:
    """What a page of the manifest is about: a shard, or a part of a data set of another format.

    name:  of the shard's file, or of the part
    stamp: size and date of the shard, or values that change if the data set changes
    is_shard: is `RecordResult.offset` a byte of a file?
    """

    name: str
    stamp: tuple[int, int]
    is_shard: bool = True

    @classmethod
    def of_shard(cls, path: Path) -> Page:
        status = path.stat()
        return cls(path.name, (status.st_size, status.st_mtime_ns))


@dataclass(frozen=True)
class Manifest:
    """The manifest of the tree `output`.

    patience_s: seconds to wait for a lock before another run is assumed to hold it
    """

    folder: Path
    output: Path
    patience_s: float = 10.0

    def begin(self, options: dict[str, Any]) -> None:
        """Start a tree. Raises UserError if it was started with other options."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "options.json"
        with self.exclusive("options"):
            if not path.exists():
                if self.output.exists() and any(self.output.iterdir()):
                    raise UserError(
                        f"{self.output}: not empty, and {self.folder} does not say what it holds; "
                        "choose another folder, or give the manifest of its first run with "
                        "--manifest"
                    )
                _write_json(path, options)
            begun_with = json.loads(path.read_text())
            if "views" in begun_with:  # as cameras were called once
                begun_with["cameras"] = begun_with.pop("views")
        for key, value in options.items():
            before = begun_with.get(key, value)  # earlier versions did not write all
            if before != value:
                raise UserError(
                    f"{self.output} was begun with {key} {before!r}, not {value!r} (see "
                    f"{path}): use the same again, or another output folder"
                )
        self.output.mkdir(parents=True, exist_ok=True)

    def known_names(self, pages: Sequence[Page]) -> list[list[str]] | None:
        """Return the folder names of each part; None if a part is new or has changed."""
        kept = self._kept_names()
        found = [kept.get(page.name, {}) for page in pages]
        if any(
            content.get("stamp") != list(page.stamp)
            for page, content in zip(pages, found, strict=True)
        ):
            return None
        return [content["names"] for content in found]

    def keep_names(self, pages: Sequence[Page], names: list[list[str]]) -> None:
        """Keep the folder names of each part. Raises UserError if one differs from before.

        That happens if shards arrive later that hold a second episode of the same name.
        """
        with self.exclusive("options"):
            kept = self._kept_names()
            for page, new_names in zip(pages, names, strict=True):
                # The lengths differ if a truncated shard has been completed since.
                earlier = kept.get(page.name, {}).get("names", [])
                for old, new in zip(earlier, new_names, strict=False):
                    if old not in ("", new):
                        raise UserError(
                            f"{self.output} has an episode {old}, which is called {new!r} now that "
                            "the input holds other shards than before; use another output folder"
                        )
                kept[page.name] = {"stamp": page.stamp, "names": new_names}
            _write_json(self.folder / "names.json", kept)

    def _kept_names(self) -> dict[str, Any]:
        path = self.folder / "names.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_results(self, page: Page, results: tuple[RecordResult, ...], complete: bool) -> None:
        """Write the page of a part. `complete` says that these are all its records."""
        content = {
            "bytes": page.stamp[0],
            "complete": complete,
            "records": [asdict(result) for result in results],
        }
        _write_json(self._file(page), content)

    def finished_results(self, page: Page, limit: int | None) -> tuple[RecordResult, ...] | None:
        """Return the first `limit` results of a part that needs no more work, otherwise None.

        A part needs work if it has changed, a record has failed, or a folder is gone.
        """
        path = self._file(page)
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        if not content["complete"] or content["bytes"] != page.stamp[0]:
            return None
        results = []
        for record in itertools.islice(content["records"], limit):
            result = RecordResult(**record)
            if result.status == WRITTEN:
                result = replace(result, status=ALREADY_THERE)
            gone = result.status == ALREADY_THERE and not (self.output / result.name).is_dir()
            if result.status == FAILED or gone:
                return None
            results.append(result)
        return tuple(results)

    def _file(self, page: Page) -> Path:
        return self.folder / f"{page.name}.json"

    def exclusive(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Return the lock `what` to hold. Raises UserError that names the process that keeps it."""
        advice = "give each run a part of its own with --shard i/n"
        return exclusive(self.folder / what, self.patience_s, advice)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
