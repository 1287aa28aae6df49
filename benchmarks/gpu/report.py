#!/usr/bin/env python
"""Puts the figures of benchmarks/gpu.sh together as Markdown.

    python benchmarks/gpu/report.py OUT      writes OUT/gpu.md from OUT/right.json, fast.json, ...

A stage that did not run, or ran out of time, leaves out what it has not measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
    folder = Path(sys.argv[1])
    sections = {"right": right, "fast": fast, "fed": fed, "real": real, "study": study}
    text = []
    for stage, describe in sections.items():
        path = folder / f"{stage}.json"
        if path.exists():
            text += describe(json.loads(path.read_text()))
    (folder / "gpu.md").write_text("\n".join(text) + "\n")
    print(f"figures: {folder / 'gpu.md'}")


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    columns = list(columns)
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return ["", *(f"| {' | '.join(line)} |" for line in lines), ""]


def right(content: dict) -> list[str]:
    rows = [
        (
            test["name"].partition("::")[2],
            test["outcome"],
            test["seconds"],
            test.get("peak_mib"),
            "; ".join(f"{name}: {value}" for name, value in test["measured"].items()),
        )
        for test in content["tests"]
    ]
    columns = ("test", "outcome", "s", "peak MiB", "measured")
    text = ["## Right", *table(columns, rows)]
    if "frozen_bc" in content:
        printed = content["frozen_bc"]["table"].splitlines()
        text += ["A policy's training step:", "", *(ln for ln in printed if ln.startswith("|")), ""]
    return text


def fast(content: dict) -> list[str]:
    limits = content["limits"]
    text = ["## Fast", "", content["hardware"] + ".", "Measured limits: "]
    text[-1] += f"{limits['bf16_flop_per_s'] / 1e12:.0f} TFLOP/s in bfloat16, "
    text[-1] += f"{limits['fp32_flop_per_s'] / 1e12:.0f} in float32 (TF32 on a GPU), "
    text[-1] += f"{limits['bytes_per_s'] / 1e9:,.0f} GB/s."
    columns = list(content["rows"][0]) if content["rows"] else []
    text += table(
        (name.replace("_", " ") for name in columns), (row.values() for row in content["rows"])
    )
    for profiled in content.get("profiles", []):
        row = profiled["row"]
        text.append(
            f"Kernels of a step, {row['backbone']}, {row['way']}, {5 * row['clips']} images: "
            f"{profiled['gpu_ms_per_step']:.1f} ms, of it "
            f"{profiled['share_not_convolution']:.1%} not convolution."
        )
        kernels = (
            (
                f"{k['ms_per_step']:.2f}",
                f"{k['calls_per_step']:.0f}",
                f"{k['share']:.1%}",
                f"`{k['name'][:80]}`",
            )
            for k in profiled["kernels"][:10]
        )
        text += table(("ms", "calls", "share", "kernel"), kernels)
    return text


def fed(content: dict) -> list[str]:
    rows = ((r["source"], r["workers"], f"{r['images_per_s']:,}") for r in content["loader"])
    text = ["## Fed", "", content["hardware"] + "."]
    text += table(("source", "loader processes", "images/s on the device, cropped"), rows)
    names = sorted({name for row in content["decoding"] for name in row} - {"way"})
    rows = ([row["way"], *(row.get(name) for name in names)] for row in content["decoding"])
    return text + table(["way of decoding", *(name.replace("_", " ") for name in names)], rows)


def real(content: dict) -> list[str]:
    rates = [line["images_per_s"] for line in content["training"] if "images_per_s" in line]
    waits = [line["data_wait"] for line in content["training"] if "data_wait" in line]
    rows = [
        ("steps", content["steps"]),
        ("images/s, median of the logged lines", f"{median(rates):,.0f}"),
        ("share of time waiting for data", f"{median(waits):.1%}"),
        ("seconds from the command to the first logged line", content["seconds_to_first_line"]),
    ]
    held_out = content["held_out"] or {}
    rows += [
        (f"held-out {name} at step {held_out['step']}", f"{value:.3f}")
        for name, value in held_out.items()
        if name.endswith(("accuracy", "/loss"))
    ]
    return ["## Real", *table(("what", "figure"), rows)]


def study(content: dict) -> list[str]:
    return ["## Study", "", content["hardware"] + ".", "", content["table"]]


if __name__ == "__main__":
    main()
