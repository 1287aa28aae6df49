"""The encoders that an evaluation compares: those that the user names, and untrained ones.

The untrained ones have the same networks and preprocessing. They show how much of a score the
network's architecture gives away for free. Called by `success_rates`, `offline` and
`centricity_report`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mcr.errors import UserError
from mcr.models.loading import load_model
from mcr.models.untrained import write_untrained_like


def named_encoders(arguments: Iterable[str]) -> dict[str, str]:
    """ "NAME=SOURCE" or "SOURCE" -> {name: source}; without a name the source is the name.

    A source is what `load_model` reads.
    Raises UserError if two encoders have the same name.
    """
    sources: dict[str, str] = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if name in sources:
            raise UserError(f"two encoders are called {name}; write NAME=PATH")
        sources[name] = source if equals else name
    return sources


def write_untrained_encoders(sources: Iterable[str], folder: Path) -> dict[str, str]:
    """Write an untrained encoder for each kind of network among the sources: {name: path}.

    A kind is a network together with its preprocessing.
    """
    encoders: dict[str, str] = {}
    kinds: set[tuple] = set()
    for source in sources:
        encoder = load_model(source)
        kind = (encoder.backbone, encoder.preprocessing)
        if kind in kinds:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = write_untrained_like(folder / f"{len(kinds)}.pt", source)
        name = f"untrained {encoder.backbone}, {encoder.preprocessing.image_size} px"
        if name in encoders:  # the same network with other normalisation, for example
            name += f" ({len(kinds)})"
        encoders[name] = str(path)
        kinds.add(kind)
    return encoders
