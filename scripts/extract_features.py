#!/usr/bin/env python
"""Compute an encoder's features of every frame of a data set once, into one mapped array.

    python scripts/extract_features.py my_encoder /data/droid_100/1.0.0 features/droid_100
    python scripts/extract_features.py my_encoder demos/image.hdf5 features/lift --dtype fp16
    python scripts/extract_features.py mcr_resnet50 videos/ features/videos --output spatial

DATA is RLDS shards, a PNG/pickle tree, robomimic's HDF5, a folder of videos (or one), or a folder
of pictures. Read the result with mcr.features.cache.FeatureCache. The same command again goes
on after an interruption; features of another encoder or other data are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.errors import command_line
from mcr.features.cache import CACHED_OUTPUTS, DTYPES
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.models.inference import ENGINES, PRECISIONS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", metavar="ENCODER", help="anything that mcr.load_model takes")
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    parser.add_argument("--output", choices=CACHED_OUTPUTS, default="pooled")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="on disk; %(default)s")
    parser.add_argument("--cameras", nargs="+", default=[], metavar="CAMERA", help="default: all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=0, help="default: 8 on a CPU, else 128")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes; default: one per core, on a GPU 4"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the computation; bf16 is faster where the processor has it, and differs by 1%%",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="",
        help="default: ONNX Runtime on a CPU if the extra onnx is installed, else torch",
    )
    return parser.parse_args()


@command_line
def main() -> None:
    options = vars(parse_arguments())
    encoder, data, out = (options.pop(name) for name in ("encoder", "data", "out"))
    config = FeatureConfig(**options | {"cameras": tuple(options["cameras"])})
    cache = extract_features(encoder, data, out, config)
    shape = " x ".join(map(str, cache.array.shape))
    print(f"{out}: {len(cache.episodes)} episodes, {shape} {config.dtype}")


if __name__ == "__main__":
    main()
