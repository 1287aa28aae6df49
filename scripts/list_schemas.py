#!/usr/bin/env python
"""Print docs/schemas.md, the table of the schemas in cfgs/data:

python scripts/list_schemas.py > docs/schemas.md
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from mcr.data.schema import Schema, list_schemas, load_schema

INTRODUCTION = """\
# Schemas of known data sets

`python scripts/list_schemas.py > docs/schemas.md` makes this page from `cfgs/data/*.yaml`.

A schema says what a data set calls its cameras, its state, its action and its language. It is
chosen by the name that the data set gives itself, by the name of its folder, or, where the last
column says so, by the signals that it has. `data.schema=NAME` chooses one by hand, and
`data.schema=FILE.yaml` one of your own.

- **cameras**: those that a recipe uses if it names none. Where a data set has cameras beside the
  robot and on its wrist, these are the ones beside it. Depth and segmentation are never cameras.
- **state**, **action**: the signals that they consist of, in order. `{3: euler}` says that the
  numbers 3, 4 and 5 of a signal are Euler angles about the fixed axes x, y, z. Where the public
  sources do not say what a rotation is, the schema says nothing, and the numbers are used as they
  are.
- **Hz**: steps per second. For data sets of Open X-Embodiment it is the figure of its table.
- **tried**: the real files that the schema was run on. The others were written from public
  sources, which the first lines of each file name together with what is unsure.
"""
COLUMNS = ("schema", "data set", "cameras", "state", "action", "Hz", "tried", "chosen by")


def page() -> str:
    """Return docs/schemas.md."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [row(name, load_schema(name)) for name in list_schemas()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{INTRODUCTION}\n{table}\n"


def row(name: str, schema: Schema) -> list[str]:
    """Return the cells of one schema."""
    return [
        f"[`{name}`](../cfgs/data/{name}.yaml)",
        schema.title,
        code(schema.default_cameras or tuple(schema.cameras)) or "all",
        signals(schema, schema.state) or "default",
        signals(schema, schema.action) or "default",
        f"{schema.hz:g}" if schema.hz else "",
        schema.tried or "no",
        code(schema.names) + (" or signals" if schema.match else ""),
    ]


def signals(schema: Schema, names: tuple[str, ...]) -> str:
    """Return names of signals, each followed by its rotations."""
    return ", ".join(
        f"`{name}` {schema.rotations[name]}".replace("'", "")
        if name in schema.rotations
        else f"`{name}`"
        for name in names
    )


def code(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(page(), end="")
