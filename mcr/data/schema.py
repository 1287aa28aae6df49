"""Schema: what a data set calls its cameras, its state, its action, its language and its sessions.

A source knows a format, a schema knows a data set. A schema is a YAML file of `cfgs/data/`, a file
of the user's, or a mapping. Every field has a default, and most data sets need no schema at all.

A key is how the format names a thing: `observation/state` in RLDS, `observation.state` in LeRobot,
`obs/robot0_eef_pos` in HDF5. A name is what this project calls it: the key without the prefix that
says "observation", see `short_name`. A schema may use either in `state`, `action` and `rotations`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from mcr.errors import UserError, nearest, require_choice
from mcr.runs.options import recipes_folder

LANGUAGES = ("language_instruction", "language_instruction_2", "language_instruction_3")
ROTATIONS = {"euler": 3}  # form of a rotation -> how many numbers it takes
_PREFIXES = (
    "observation.images.",
    "observation.image.",
    "observations/images/",
    "observation/",
    "observation.",
    "observations/",
    "obs/",
)
_GROUPS = ("lab", "outcome", "date", "recording", "session", "name")
_NOT_STATE = re.compile(r"(next\.)?(action|actions|reward|rewards|discount|done|object)\b")


@dataclass(frozen=True)
class RecordingSchema:
    """What the path of the original recording tells. It may stay empty.

    key:     the text that holds the path, for example episode_metadata/file_path
    pattern: a regular expression that is searched in it. Its named groups are any of lab, outcome,
             date, recording, session, name. A path that it does not match tells nothing.
    name:    template of the episode's name, for example "{date}_{recording}"; "" = the group "name"
             if there is one, else split and number
    session: template of what recordings of one sitting share, for example "{lab}/{date}"; "" = the
             group "session" if there is one, else every episode is a session of its own
    """

    key: str = ""
    pattern: str = ""
    name: str = ""
    session: str = ""


@dataclass(frozen=True)
class Schema:
    """What a data set calls its parts. All keys are those of the format.

    title:           name of the data set, for people; "" = it has no schema of its own
    cameras:         camera -> key of its pictures; {} = all pictures, by their own names
    default_cameras: cameras that a recipe uses if it names none; [] = all
    present:         camera -> key of a flag that says whether an episode has that camera
    state:           signals that make up the state, in order; [] = `state`, or else all numbers of
                     the observation but the true poses of objects
    action:          signals that make up the action, in order; [] = `action` or `actions`. A
                     dictionary of tensors counts as its parts, in the order of its sorted keys.
    signals:         further keys to read although they are large; others of over 64 numbers per
                     step are skipped
    rotations:       signal -> {position of its first number: form}; the only form is "euler", three
                     angles about the fixed axes x, y, z. They may be turned into 6-D.
    language:        keys of at most three instructions; [] = texts that are called so
    recording:       what the original path tells of name, session, lab, outcome and date
    splits:          splits to read, for example [train]; [] = all
    hz:              steps per second; 0 = what the format says, if it does
    min_frames:      a recipe leaves out shorter episodes, unless it says otherwise; 0 = none
    names:           names of data sets that this schema is for
    match:           cameras and signals by which a data set of any name is recognised; it must have
                     all of them
    tried:           on what real files the schema was run; "" = on none
    """

    title: str = ""
    cameras: dict[str, str] = field(default_factory=dict)
    default_cameras: tuple[str, ...] = ()
    present: dict[str, str] = field(default_factory=dict)
    state: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    rotations: dict[str, dict[int, str]] = field(default_factory=dict)
    language: tuple[str, ...] = ()
    recording: RecordingSchema = RecordingSchema()
    splits: tuple[str, ...] = ()
    hz: float = 0.0
    min_frames: float = 0.0
    names: tuple[str, ...] = ()
    match: tuple[str, ...] = ()
    tried: str = ""

    @classmethod
    def of(cls, content: Mapping[str, Any], place: str = "schema") -> Schema:
        """Make a schema of a mapping, as a YAML file holds it.

        place: where it comes from, for messages

        Raises UserError for an unknown field, with the nearest, and for a value of a wrong type.
        """
        values = _checked(cls, content, place)
        if "recording" in values:
            recording = values["recording"]
            values["recording"] = RecordingSchema(**_checked(RecordingSchema, recording, place))
        if "rotations" in values:
            values["rotations"] = {
                short_name(signal): _checked_rotations(forms, f"{place}: rotations of {signal}")
                for signal, forms in values["rotations"].items()
            }
        for name in ("state", "action"):
            values[name] = tuple(short_name(key) for key in values.get(name, ()))
        schema = cls(**values)
        schema._check(place)
        return schema

    def _check(self, place: str) -> None:
        if len(self.language) > len(LANGUAGES):
            raise UserError(f"{place}: language names {len(self.language)} texts; 3 are kept")
        try:
            groups = re.compile(self.recording.pattern).groupindex
        except re.error as error:
            problem = f"{place}: recording.pattern is no regular expression: {error}"
            raise UserError(problem) from error
        for group in groups:
            require_choice(f"{place}: a group of recording.pattern", group, _GROUPS)
        for template in (self.recording.name, self.recording.session):
            for group in re.findall(r"\{(\w+)\}", template):
                require_choice(f"{place}: a part of {template!r}", group, groups)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults, for YAML or JSON. `of` reads them."""
        content = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if value != getattr(_DEFAULT, part.name):
                value = dataclasses.asdict(value) if isinstance(value, RecordingSchema) else value
                content[part.name] = list(value) if isinstance(value, tuple) else value
        return content

    def reads(self) -> dict[str, Any]:
        """Return the part of `as_dict` that decides what is read from the files.

        If it differs from that of an index, the index has to be built anew. The other fields only
        say how a recipe uses what was read.
        """
        free = {
            "title",
            "default_cameras",
            "state",
            "action",
            "rotations",
            "hz",
            "min_frames",
            "names",
            "match",
        }
        return {k: v for k, v in self.as_dict().items() if k not in {*free, "tried"}}


def _checked(cls: type, content: Any, place: str) -> dict[str, Any]:
    """Return the values of the fields of `cls`, lists as tuples. Raises UserError."""
    if not isinstance(content, Mapping):
        raise UserError(f"{place}: holds {content!r}, not a mapping of fields")
    known = {part.name: part for part in fields(cls)}
    values = {}
    for name, value in content.items():
        if name not in known:
            raise UserError(f"{place}: unknown field {name!r}{nearest(str(name), known)}")
        default = getattr(cls(), name)
        if isinstance(default, tuple):
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                raise UserError(f"{place}: {name}={value!r} must be a list of texts")
            value = tuple(value)
        elif isinstance(default, float):
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise UserError(f"{place}: {name}={value!r} must be a number, 0 or above")
            value = float(value)
        elif isinstance(default, str) and not isinstance(value, str):
            raise UserError(f"{place}: {name}={value!r} must be a text")
        elif isinstance(default, dict) and not isinstance(value, Mapping):
            raise UserError(f"{place}: {name}={value!r} must be a mapping")
        values[str(name)] = dict(value) if isinstance(default, dict) else value
    return values


def _checked_rotations(forms: Any, place: str) -> dict[int, str]:
    if not isinstance(forms, Mapping):
        raise UserError(f"{place}: {forms!r} must be {{position of the first number: form}}")
    checked = {}
    for position, form in forms.items():
        if not str(position).isdigit() or form not in ROTATIONS:
            forms_known = ", ".join(ROTATIONS)
            raise UserError(f"{place}: {position}: {form!r}; give a position and {forms_known}")
        checked[int(position)] = str(form)
    return checked


_DEFAULT = Schema()


# --------------------------------------------------------------------------- names


def short_name(key: str) -> str:
    """Return the name of a camera or signal: its key without the prefix of observations.

    >>> short_name("observation/image_0"), short_name("observation.images.front")
    ('image_0', 'front')
    """
    for prefix in _PREFIXES:
        if key.startswith(prefix) and len(key) > len(prefix):
            return key[len(prefix) :]
    return key.lstrip("/")


def names_of(keys: Iterable[str]) -> dict[str, str]:
    """Return a unique name for each key: its short name, or the key where two would share one."""
    keys = list(keys)
    counts = Counter(short_name(key) for key in keys)
    return {key: short_name(key) if counts[short_name(key)] == 1 else key for key in keys}


def is_large(size: int) -> bool:
    """Is a field of `size` numbers per step (an embedding, say) read only if a schema names it?"""
    return size > 64


# --------------------------------------------------------------------------- what a recipe uses


def state_signals(schema: Schema, signals: Collection[str]) -> tuple[str, ...]:
    """Return the signals that make up the state. `signals`: names of all, in order."""
    if schema.state:
        return _expanded(schema.state, signals)
    if "state" in signals:
        return ("state",)
    return tuple(name for name in signals if not _NOT_STATE.match(name))


def action_signals(schema: Schema, signals: Collection[str]) -> tuple[str, ...]:
    """Return the signals that make up the action; () if the data set has none."""
    for candidate in (schema.action, ("action",), ("actions",)):
        found = _expanded(candidate, signals)
        if candidate and (found != candidate or set(found) <= set(signals)):
            return found
    return schema.action


def _expanded(wanted: tuple[str, ...], signals: Collection[str]) -> tuple[str, ...]:
    """Replace the name of a dictionary by its parts, in the order of their sorted names."""
    found: list[str] = []
    for name in wanted:
        parts = sorted(signal for signal in signals if signal.startswith(f"{name}/"))
        found += [name] if name in signals or not parts else parts
    return tuple(found)


# --------------------------------------------------------------------------- files


def schemas_folder() -> Path:
    """Return the folder of the schemas that the package brings."""
    return recipes_folder() / "data"


def list_schemas() -> dict[str, Path]:
    """Return the schemas of the package: name -> file."""
    return {path.stem: path for path in sorted(schemas_folder().glob("*.yaml"))}


def load_schema(source: str | Path | Mapping[str, Any]) -> Schema:
    """Load a schema: the name of one of `list_schemas`, a YAML file, or a mapping.

    Raises UserError for an unknown name, with the nearest, and for a damaged or wrong file.
    """
    if isinstance(source, Mapping):
        return Schema.of(source)
    path, known = Path(source), list_schemas()
    if str(source) in known:
        path = known[str(source)]
    elif path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"schema {str(source)!r} is unknown{nearest(str(source), known)}; or give a YAML file"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: no readable schema ({error})") from error
    return Schema.of(content or {}, str(path))


def find_schema(dataset: str, things: Collection[str]) -> Schema | None:
    """Return the schema of the package that is meant for a data set, or None.

    dataset: what the data set calls itself, or the name of its folder
    things:  names of its cameras and signals
    """
    for path in list_schemas().values():
        schema = load_schema(path)
        if dataset in schema.names or (schema.match and set(schema.match) <= set(things)):
            return schema
    return None


def to_yaml(schema: Schema) -> str:
    """Return a schema as the text of a YAML file."""
    content = schema.as_dict()
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
