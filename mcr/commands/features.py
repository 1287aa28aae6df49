"""Compute an encoder's features of every frame of a data set once, into one memory-mapped array.

    mcr features my_encoder /data/droid_100/1.0.0 features/droid_100
    mcr features my_encoder demos/image.hdf5 features/lift --dtype fp16
    mcr features mcr_resnet50 videos/ features/videos --output spatial

DATA is a data set of any format: RLDS, LeRobot, HDF5, a PNG/pickle tree, videos or pictures. Read
the result with mcr.features.cache.FeatureCache. The same command again continues after an
interruption. Features of another encoder or of other data are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.commands.data_options import add_data_options
from mcr.features.cache import CACHED_OUTPUTS, DTYPES
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.models.inference import ENGINES, PRECISIONS
from mcr.runs.ranges import DEVICE, ranges_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", metavar="ENCODER", help="anything that mcr.load_model takes")
    parser.add_argument("data", metavar="DATA", type=Path, help="the frames to encode")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    add_data_options(parser)
    ranges = ranges_of(FeatureConfig)
    parser.add_argument(
        "--output",
        type=ranges["output"],
        choices=CACHED_OUTPUTS,
        default="pooled",
        help="one vector per frame, or the last feature map; default: %(default)s",
    )
    parser.add_argument(
        "--dtype",
        type=ranges["dtype"],
        choices=DTYPES,
        default="fp32",
        help="number format on the disk; default: %(default)s",
    )
    parser.add_argument(
        "--cameras", nargs="+", default=[], metavar="CAMERA", help="cameras to use; default: all"
    )
    parser.add_argument(
        "--device", type=DEVICE, default="cpu", help="cpu, cuda, cuda:1; default: %(default)s"
    )
    parser.add_argument(
        "--batch-size",
        type=ranges["batch_size"],
        default=0,
        help="frames at a time; default: 8 on a CPU, else 128",
    )
    parser.add_argument(
        "--workers",
        type=ranges["workers"],
        default=0,
        help="number of processes; default: one per core, on a GPU 4",
    )
    parser.add_argument(
        "--precision",
        type=ranges["precision"],
        choices=PRECISIONS,
        default="fp32",
        help="number format of the computation; bf16 is faster on a processor that has it, and "
        "changes features by 1%%; default: %(default)s",
    )
    parser.add_argument(
        "--engine",
        type=ranges["engine"],
        choices=ENGINES,
        default="",
        help="what runs the network; default: ONNX Runtime on a CPU if the extra onnx is "
        "installed, else torch",
    )


def run(options: argparse.Namespace) -> None:
    settings = vars(options)
    encoder, data, out, index, schema = (
        settings.pop(name) for name in ("encoder", "data", "out", "index", "schema")
    )
    config = FeatureConfig(**settings | {"cameras": tuple(settings["cameras"])})
    cache = extract_features(encoder, data, out, config, index, schema)
    shape = " x ".join(map(str, cache.array.shape))
    print(f"{out}: {len(cache.episodes)} episodes, {shape} {config.dtype}")
