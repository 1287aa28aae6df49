"""Check whether an encoder is what it claims to be, and say so in words.

    mcr verify my_encoder
    mcr verify mcr_resnet50.pth

The checks cover the file's hash, every tensor, batch-norm statistics, traces of training, the
spread of features, and the preprocessing. The features of pictures that ship with mcr are compared
with those stored in the export. ENCODER is anything that mcr.load_model takes.

Exit code: 0 if nothing is wrong, 1 if something is, 2 if there is no such encoder.
"""

from __future__ import annotations

import argparse

from mcr.release.verify import verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", metavar="ENCODER", help="the encoder to check")


def run(options: argparse.Namespace) -> int:
    verification = verify(options.encoder)
    print(verification)
    return 0 if verification.ok else 1
