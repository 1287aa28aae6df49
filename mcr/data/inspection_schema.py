"""The schema that is assumed of a data set, to start a YAML file from, and what is unsure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mcr.data.index import Index
from mcr.data.schema import to_yaml
from mcr.data.sources import open_source

_POSE_SIZES = (6, 7)  # xyz and three angles, and perhaps a gripper


def describe_schema(index: Index) -> str:
    """Return the assumed schema as YAML, after comments that say what is unsure."""
    keys = open_source(index.source, index.schema).cameras
    schema = replace(
        index.schema,
        cameras={camera: keys.get(camera, camera) for camera in index.cameras},
        default_cameras=index.default_cameras,
        state=index.state,
        action=index.action,
        names=(),
        match=(),
    )
    title = index.schema.title or "not known: these are the defaults of the format"
    doubts = "".join(f"# unsure: {doubt}\n" for doubt in _doubts(index))
    return f"# schema of {index.name}: {title}\n{doubts}{to_yaml(schema).rstrip()}"


def _doubts(index: Index) -> Iterator[str]:
    schema, columns = index.schema, index.info["columns"]
    for role, signals in (("state", index.state), ("action", index.action)):
        if not signals:
            yield f"no signal is called {role}; name some with {role}: [...]"
        for signal in signals:
            begin, end = columns.get(signal, (0, 0))
            if signal not in columns:
                yield f"{role} names {signal}, which the data set lacks"
            elif end - begin in _POSE_SIZES and signal not in schema.rotations:
                yield (
                    f"{signal} has {end - begin} numbers. If they are xyz and three Euler angles, "
                    f"say rotations: {{{signal}: {{3: euler}}}}"
                )
    if not schema.hz:
        yield "the rate in Hz is not known; say hz: ..."
    if (index.table["session"] == index.table["name"]).all() and len(index) > 1:
        yield (
            "every episode counts as a session of its own. If several were recorded in one "
            "sitting, say recording: {key: ..., pattern: ...}, or held-out episodes will resemble "
            "those that are trained on"
        )
