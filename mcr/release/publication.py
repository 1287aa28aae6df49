"""Publication: what of an encoder's history an export holds, and so what an upload makes public.

A run knows the command line, its working folder and where its data lies. Nobody needs these to use
an encoder or to train it again, and they tell about people and machines. An export leaves them out:
of a path it keeps the last component, so that the card can name a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from mcr.models.hub import SCHEME
from mcr.models.layouts import UNTRAINED

_KEPT = ("step", "dataset", "versions", "results", "weights", "hardware", UNTRAINED)
_PLACES = ("root", "index", "run_dir")  # options that only say where something lies


def public_facts(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may be published of a provenance, see `models.layouts.Weights`.

    Applied to its own result it changes nothing.
    """
    facts = {key: provenance[key] for key in _KEPT if key in provenance}
    if "config" in provenance:
        facts["config"] = _without_places(provenance["config"])
    if "hardware" in provenance.get("launch", {}):  # where exports of earlier versions keep it
        facts.setdefault("hardware", provenance["launch"]["hardware"])
    return facts


def _without_places(value: Any) -> Any:
    """A config, or a part of it, without folders."""
    if isinstance(value, Mapping):
        return {key: _without_places(v) for key, v in value.items() if key not in _PLACES}
    if isinstance(value, list | tuple):
        return [_without_places(each) for each in value]
    if isinstance(value, str) and not value.startswith(SCHEME):
        return PurePosixPath(value.replace("\\", "/")).name if _is_path(value) else value
    return value


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text
