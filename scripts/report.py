#!/usr/bin/env python
"""`mcr report` by the name of its script."""

from mcr.cli import main

if __name__ == "__main__":
    main("report")
