#!/usr/bin/env python
"""Check that this Python can run this checkout, without installing or importing anything.

`scripts/environment.sh` calls this in an active environment, before anything of `mcr` is known to
be importable there. It therefore needs the standard library alone.
It exits with 0, or prints what is missing and how to get it and exits with 2.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def setup_keywords() -> dict[str, ast.expr]:
    """The keyword arguments that setup.py gives to setup(), as they are written there."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (call,) = (node.value for node in tree.body if isinstance(node, ast.Expr))
    return {keyword.arg: keyword.value for keyword in call.keywords}


def required(extras: list[str]) -> list[str]:
    """The requirements of `mcr` and of the extras, each once."""
    keywords = setup_keywords()
    of_extra = ast.literal_eval(keywords["extras_require"])
    lines = ast.literal_eval(keywords["install_requires"])
    for extra in extras:
        lines += of_extra[extra]
    return list(dict.fromkeys(lines))


def complaint(requirement: str) -> str | None:
    """What is wrong with the installed distribution, or None if it meets the requirement."""
    name = re.match(r"[\w.-]+", requirement)[0]
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement} is not installed"
    if importlib.util.find_spec("packaging") is None:
        return None  # matplotlib, which requires it, is missing then and is complained about
    from packaging.requirements import Requirement

    if Requirement(requirement).specifier.contains(installed, prereleases=True):
        return None
    return f"{requirement} is needed, but {installed} is installed"


def place_of_mcr() -> Path | None:
    """The folder of the `mcr` that this Python imports, whatever the current folder is."""
    spec = importlib.util.find_spec("mcr")
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def advice(missing: list[str], extras: list[str]) -> str:
    """The command that makes the environment complete."""
    if place_of_mcr() == ROOT / "mcr":
        arguments = missing
    else:
        arguments = ["--editable", str(ROOT) + (f"[{','.join(extras)}]" if extras else "")]
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extras", nargs="*", help="extras of setup.py that are needed, too")
    extras = parser.parse_args().extras
    found = {line: text for line in required(extras) if (text := complaint(line))}
    place = place_of_mcr()
    complaints = list(found.values())
    if place is None:
        complaints.insert(0, "mcr is not installed")
    elif place != ROOT / "mcr":
        complaints.insert(0, f"mcr is that of {place.parent}, not of this checkout, {ROOT}")
    if complaints:
        print(message(complaints, advice(list(found), extras)), file=sys.stderr)
    return 2 if complaints else 0


def message(complaints: list[str], command: str) -> str:
    return "\n  ".join(
        [
            f"error: the active environment, {sys.prefix}, does not fit this checkout:",
            *complaints,
            "Nothing was changed. This command installs into that environment what is missing:",
            f"    {command}",
            "Without an active environment, this script makes one of its own in .venv.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
