#!/usr/bin/env python
"""Do encoders look at what is being manipulated? Manipulation centricity, after MCR's paper.

    python scripts/centricity.py my_encoder r3m=r3m_resnet50 --demonstrations assembly.hdf5
    python scripts/centricity.py my_encoder --pictures frames --masks masks
    python scripts/centricity.py --results evaluation_metaworld/results.csv \\
        --demonstrations evaluation_metaworld/demonstrations/*.hdf5

The Jaccard index of each encoder's binarised Grad-CAM with masks of gripper and objects, 0 to 1,
beside what maps get that never looked: the whole picture, a disc in its middle and random pixels,
both as large as the encoder's map. Masks are rendered (record_demonstrations.py --masks), or PNG
files named as the pictures (SAM 2's).

Writes to --out: centricity.csv and .md, sweep.png (over thresholds), a picture per task. --results
is a table of evaluate.py: adds the correlation with success, over the encoders named here or all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mcr.errors import UserError, command_line
from mcr.evaluation.centricity import (
    THRESHOLD,
    Saliency,
    baselines,
    correlate_with_success,
    draw_saliency,
    draw_sweep,
    find_saliency,
    sweep,
    to_markdown,
)
from mcr.evaluation.masked_pictures import MaskedPictures, read_demonstrations, read_folders
from mcr.models.loading import load_model


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "encoders",
        nargs="*",
        metavar="ENCODER",
        help="what mcr.load_model reads, or NAME=that; default: all of --results",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--demonstrations", nargs="+", metavar="HDF5", help="with pictures and masks; a task each"
    )
    source.add_argument("--pictures", metavar="DIR", help="folders of pictures; a task each")
    parser.add_argument("--masks", metavar="DIR", help="of --pictures: PNGs of the same names")
    parser.add_argument("--camera", default="", help="of --demonstrations with several")
    parser.add_argument(
        "--frames", type=int, default=64, help="of each task, evenly chosen; default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="of the maps; default: %(default)s"
    )
    parser.add_argument("--results", metavar="CSV", help="success rates of the same encoders")
    parser.add_argument("--out", type=Path, default=Path("centricity"), metavar="DIR")
    parser.add_argument("--device", help="default: the CPU")
    arguments = parser.parse_args()
    if (arguments.pictures is None) != (arguments.masks is None):
        parser.error("--pictures and --masks go together")
    return arguments


def named_encoders(arguments: list[str], results: pd.DataFrame | None) -> dict[str, str]:
    """Name -> what `load_model` reads; without arguments all that the results were made with."""
    if arguments:
        split = [argument.partition("=") for argument in arguments]
        return {name: source if equals else name for name, equals, source in split}
    if results is None:
        raise UserError("no encoder: name one or more, or give --results with encoders in it")
    seen = results[results["source"] != ""]
    return dict(zip(seen["encoder"], seen["source"], strict=True))


def read_tasks(arguments: argparse.Namespace) -> Iterator[MaskedPictures]:
    if arguments.frames < 1:
        raise UserError(f"--frames {arguments.frames}: give 1 or more")
    if arguments.pictures:
        yield from read_folders(arguments.pictures, arguments.masks, arguments.frames)
    else:
        for path in arguments.demonstrations:
            yield read_demonstrations(path, arguments.camera, arguments.frames)


def table_row(encoder: str, task: str, looks: Saliency, threshold: float) -> dict:
    scores = {"centricity": sweep(looks, [threshold])[:, 0], **baselines(looks, threshold)}
    return {
        "encoder": encoder,
        "task": task,
        "frames": len(looks.maps),
        "unseen": looks.num_unseen,
        **{name: float(values.mean()) for name, values in scores.items()},
    }


def describe_correlation(table: pd.DataFrame, results: pd.DataFrame, where: str) -> str:
    centricity = table.groupby("encoder")["centricity"].mean().to_dict()
    found = correlate_with_success(centricity, results, where)
    return (
        f"Correlation with success over {len(centricity)} encoders: "
        f"Pearson {found['pearson']:.2f} (p {found['pearson_p']:.2g}), "
        f"Spearman {found['spearman']:.2f} (p {found['spearman_p']:.2g})\n"
    )


@command_line
def main() -> None:
    arguments = parse_arguments()
    results = None
    if arguments.results:
        results = pd.read_csv(arguments.results, keep_default_na=False)
    encoders = {
        name: load_model(source, device=arguments.device)
        for name, source in named_encoders(arguments.encoders, results).items()
    }
    rows: list[dict] = []
    curves: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for frames in read_tasks(arguments):
        looks = {name: find_saliency(encoder, frames) for name, encoder in encoders.items()}
        for name, look in looks.items():
            rows.append(table_row(name, frames.task, look, arguments.threshold))
            curves[name].append(sweep(look).mean(axis=0))
        picture = f"{frames.task.replace('/', '_')}.png"
        draw_saliency(looks, arguments.out / picture, arguments.threshold)
    means = {name: np.mean(each, axis=0) for name, each in curves.items()}
    draw_sweep(means, arguments.out / "sweep.png")

    table = pd.DataFrame(rows)
    table.to_csv(arguments.out / "centricity.csv", index=False)
    text = to_markdown(table, arguments.threshold)
    if results is not None:
        text += "\n" + describe_correlation(table, results, arguments.results)
    (arguments.out / "centricity.md").write_text(text)
    print(text)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
