#!/usr/bin/env python
"""`mcr compare` by the name of its script."""

from mcr.cli import main

if __name__ == "__main__":
    main("compare")
