#!/usr/bin/env python
"""Say in words whether an encoder is what it claims to be.

    python scripts/verify.py my_encoder
    python scripts/verify.py mcr_resnet50.pth

Looks at the hash, every tensor, the features of pictures that ship with mcr against those stored in
the export, batch statistics, traces of training, the spread of features, and the preprocessing.
ENCODER is anything that mcr.load_model takes.

Exit code: 0 if nothing is wrong, 1 if something is, 2 if there is no such encoder.
"""

from __future__ import annotations

import argparse

from mcr.errors import command_line
from mcr.release.verify import verify


@command_line
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", metavar="ENCODER", help="what to look at")
    verification = verify(parser.parse_args().encoder)
    print(verification)
    return 0 if verification.ok else 1


if __name__ == "__main__":
    main()
