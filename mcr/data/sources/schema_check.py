"""`choose_schema` finds the schema of a data set and checks that the data set holds its keys."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from mcr.data.schema import RecordingSchema, Schema, find_schema, short_name
from mcr.errors import UserError, require_choice


@dataclass(frozen=True)
class Keys:
    """What a data set holds.

    cameras: keys of pictures
    signals: keys of numbers
    texts:   keys of texts
    splits:  names of its splits
    """

    cameras: Collection[str]
    signals: Collection[str]
    texts: Collection[str] = ()
    splits: Collection[str] = ()


def choose_schema(path: Path, name: str, schema: Schema | None, keys: Keys) -> Schema:
    """Return the given schema, or the one of the package that is meant for the data set.

    Raises UserError if the given schema names something that the data set does not hold.
    """
    if schema is not None:
        _check(path, schema, keys)
        return schema
    short_names = [short_name(key) for key in (*keys.cameras, *keys.signals)]
    found = find_schema(name, [*short_names, *keys.cameras, *keys.signals])
    if found is None:
        return Schema()
    found = _fitting(found, keys)
    try:
        _check(path, found, keys)
    except UserError:  # it is meant for these recordings in another format, with other keys
        return Schema()
    return found


def _fitting(schema: Schema, keys: Keys) -> Schema:
    """Return a schema of the package without the optional parts that the data set lacks.

    Its default cameras may not be there, say, or the path of the original recording.
    """
    short_names = {short_name(key) for key in (*keys.cameras, *keys.signals)}
    known = short_names | {*keys.cameras, *keys.signals, *schema.cameras}
    lacks_path = schema.recording.key not in keys.texts
    return replace(
        schema,
        default_cameras=tuple(name for name in schema.default_cameras if name in known),
        rotations={name: forms for name, forms in schema.rotations.items() if name in known},
        language=tuple(key for key in schema.language if key in keys.texts),
        recording=RecordingSchema() if lacks_path else schema.recording,
    )


def _check(path: Path, schema: Schema, keys: Keys) -> None:
    """Raise UserError if the schema names a key that is missing, with the nearest one."""

    def require(part: str, wanted: Collection[str], known: Collection[str]) -> None:
        for name in wanted:
            require_choice(f"{path}: {part} of the schema", name, known)

    signals = [*(short_name(key) for key in keys.signals), *keys.signals]
    require("cameras", schema.cameras.values(), keys.cameras)
    known = [*schema.cameras] or [*(short_name(key) for key in keys.cameras), *keys.cameras]
    require("default_cameras", schema.default_cameras, known)
    require("present", schema.present, known)
    require("present", schema.present.values(), signals)
    require("state", schema.state, signals)
    require("action", schema.action, signals)
    require("signals", schema.signals, signals)
    require("rotations", schema.rotations, signals)
    require("language", schema.language, keys.texts)
    require("recording.key", [schema.recording.key] if schema.recording.key else [], keys.texts)
    require("splits", schema.splits, keys.splits)
