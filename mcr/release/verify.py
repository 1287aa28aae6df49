"""Verify: checks whether an encoder is what it claims to be, and reports the findings in words.

Loading already refuses tensors that do not fill the network. An encoder that loads may still be
untrained, damaged without a change of shapes, collapsed, or described wrongly. Each is checked
here, on the CPU, with the golden pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mcr.errors import UserError
from mcr.models.catalogue import MODELS, identify
from mcr.models.encoder import Encoder
from mcr.models.layouts import CONFIG_NAME, WEIGHTS_NAME, Weights
from mcr.models.loading import build_encoder
from mcr.models.sources import read_source
from mcr.models.tensor_files import sha256
from mcr.release.golden_features import golden_deviation, golden_features

_GOLDEN_TOLERANCE = 1e-3  # of the norm of features; machines differ by about 1e-6
_LEAST_SPREAD = 1e-3  # of the norm of features; below it the encoder has collapsed

SOUND, WRONG, UNKNOWN = "ok", "WRONG", "-"


@dataclass(frozen=True)
class Finding:
    """The result of one check. verdict: SOUND, WRONG, or UNKNOWN if nothing can be said."""

    subject: str
    verdict: str
    text: str


@dataclass
class Verification:
    """All findings about an encoder; prints as a report."""

    source: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no finding is WRONG."""
        return all(finding.verdict != WRONG for finding in self.findings)

    def __str__(self) -> str:
        width = max(len(finding.subject) for finding in self.findings)
        lines = [f"  {f.verdict:5}  {f.subject:{width}}  {f.text}" for f in self.findings]
        wrong = [finding.subject for finding in self.findings if finding.verdict == WRONG]
        verdict = (
            f"{self.source} is NOT what it should be: look at {', '.join(wrong)}"
            if wrong
            else f"{self.source} is what it claims to be, as far as can be told"
        )
        return "\n".join([*lines, verdict])


def verify(source: str | Path) -> Verification:
    """Run all checks on `source`, which is anything that `load_model` takes.

    A file that cannot be loaded is a finding. UserError is raised only if there is no such file.
    """
    verification = Verification(str(source))
    try:
        weights = read_source(source)
        encoder = build_encoder(weights)
    except UserError as error:
        if not Path(source).expanduser().exists():
            raise
        verification.findings.append(Finding("loading", WRONG, str(error)))
        return verification
    claims = _claims(weights.path)
    features = golden_features(encoder)
    verification.findings = [
        _loading(weights, encoder),
        _file(weights.path, claims),
        _golden(claims, features),
        _statistics(encoder),
        _training(encoder),
        _spread(features),
        _preprocessing(encoder),
    ]
    return verification


def _claims(path: Path) -> dict[str, Any]:
    """The content of an export's config.json; {} for other files."""
    folder = path if path.is_dir() else path.parent
    is_export = path.is_dir() or path.name == WEIGHTS_NAME
    if not is_export or not (folder / CONFIG_NAME).is_file():
        return {}
    return json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))


def _loading(weights: Weights, encoder: Encoder) -> Finding:
    count, expected = len(weights.tensors), len(encoder.state_dict())
    text = f"{count}/{expected} tensors of a {weights.backbone}, {weights.layout}"
    return Finding("loading", SOUND if count == expected else WRONG, text)


def _file(path: Path, claims: dict[str, Any]) -> Finding:
    """Compare the hash of the weights' file with the export's config and the catalogue."""
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        return Finding("file", UNKNOWN, "the weights are in the cache of another library")
    digest = sha256(file)
    claimed = claims.get("mcr", {}).get("weights_sha256")
    if published := identify(digest):
        return Finding("file", SOUND, f"the published {published.name}, sha256 {digest[:16]}...")
    named = MODELS.get(file.stem)
    if named and named.sha256:
        return Finding("file", WRONG, f"is called {named.name}, but is not the published file")
    if claimed:
        return Finding("file", SOUND, f"sha256 {digest[:16]}..., as exported")
    return Finding("file", UNKNOWN, f"sha256 {digest[:16]}..., no published encoder known here")


def _golden(claims: dict[str, Any], features: Tensor) -> Finding:
    """Compare features with those that were stored when it was exported."""
    record = claims.get("mcr", {}).get("golden")
    if record is None:
        return Finding("golden features", UNKNOWN, "none recorded; exports made by mcr have them")
    try:
        deviation = golden_deviation(record, features)
    except UserError as error:
        return Finding("golden features", WRONG, str(error))
    verdict = SOUND if deviation <= _GOLDEN_TOLERANCE else WRONG
    return Finding("golden features", verdict, f"differ by {deviation:.1e} from the export's")


def _statistics(encoder: Encoder) -> Finding:
    """Find layers whose variances are not positive, or whose statistics are as initialised."""
    layers = _batch_statistics(encoder)
    if not layers:
        return Finding("batch statistics", UNKNOWN, "it has no batch normalisation")
    broken = [name for name, (_, variance) in layers.items() if not (variance > 0).all()]
    if broken:
        return Finding("batch statistics", WRONG, f"{_some(broken)}: variances are not above zero")
    initial = [
        name
        for name, (mean, variance) in layers.items()
        if not mean.any() and (variance == 1).all()
    ]
    if initial:
        text = f"{_some(initial)} of {len(layers)} saw no data: mean 0, variance 1 everywhere"
        return Finding("batch statistics", WRONG, text)
    counters = [t for name, t in encoder.state_dict().items() if name.endswith("batches_tracked")]
    batches = max((int(counter) for counter in counters), default=0)
    counted = f", of {batches:,} batches" if batches else ""
    return Finding("batch statistics", SOUND, f"{len(layers)} layers, all valid{counted}")


def _training(encoder: Encoder) -> Finding:
    """Find normalisation layers with scale 1 and shift 0, which any training changes."""
    layers = {
        name: layer
        for name, layer in encoder.named_modules()
        if isinstance(getattr(layer, "bias", None), Tensor)
        and isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
    }
    untouched = [
        name for name, layer in layers.items() if (layer.weight == 1).all() and not layer.bias.any()
    ]
    if not layers:
        return Finding("training", UNKNOWN, "it has no normalisation layers to tell by")
    if untouched:
        text = f"{_some(untouched)} of {len(layers)} normalisation layers are as initialised"
        who = "the encoder" if len(untouched) == len(layers) else "a part of it"
        return Finding("training", WRONG, f"{text}: {who} is untrained")
    return Finding("training", SOUND, f"all {len(layers)} normalisation layers have learned")


def _spread(features: Tensor) -> Finding:
    """Check that different pictures have different features."""
    if not features.isfinite().all():
        return Finding("features", WRONG, "they are not finite for the golden pictures")
    centred = features - features.mean(0)
    spread = (centred.norm() / features.norm().clamp(min=1e-30)).item()
    dead = (features == features[0]).all(0).float().mean().item()
    text = f"{spread:.1%} of their size differs between {len(features)} pictures"
    if dead:
        text += f"; {dead:.0%} never change"
    if spread < _LEAST_SPREAD:
        return Finding("features", WRONG, f"{text}: the encoder has collapsed")
    return Finding("features", SOUND, text)


def _preprocessing(encoder: Encoder) -> Finding:
    """Say how pictures are prepared. Loading has compared it with what other libraries are told."""
    ours = encoder.preprocessing
    mean, std = ([round(value, 3) for value in values] for values in (ours.mean, ours.std))
    text = f"resize {ours.resize}, crop {ours.image_size}, {ours.interpolation}"
    return Finding("preprocessing", SOUND, f"{text}, mean {mean}, std {std}")


def _batch_statistics(encoder: Encoder) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> running mean and variance. Loading has checked that they are finite."""
    return {
        name: (layer.running_mean, layer.running_var)
        for name, layer in encoder.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.running_mean is not None
        and layer.running_var is not None
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
