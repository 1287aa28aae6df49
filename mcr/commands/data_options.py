"""The options that every command which opens a data set shares. This is no command itself."""

from __future__ import annotations

import argparse


def add_data_options(parser: argparse._ActionsContainer) -> None:
    """Add --schema and --index, which `mcr.data.index.open_index` explains."""
    parser.add_argument(
        "--schema",
        metavar="NAME|YAML",
        help="what the data set calls its cameras, state and action: a name of cfgs/data/ or a "
        "file; default: what is known of the data set",
    )
    parser.add_argument(
        "--index", metavar="DIR", help="where the index lies; default: DATA.index, beside the data"
    )
