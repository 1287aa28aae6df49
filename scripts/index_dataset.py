#!/usr/bin/env python
"""`mcr index` by the name of its script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone, not installed

from mcr.cli import main

if __name__ == "__main__":
    main("index")
