#!/usr/bin/env python
"""`mcr centricity` by the name of its script."""

from mcr.cli import main

if __name__ == "__main__":
    main("centricity")
