"""What an export says about itself to people: its model card, and the recipe that trained it."""

from __future__ import annotations

import json
from typing import Any

from mcr.models.catalogue import identify
from mcr.models.encoder import Encoder
from mcr.models.layouts import Weights
from mcr.models.tensor_files import sha256

CARD_NAME = "README.md"
RECIPE_NAME = "recipe.yaml"
_UNKNOWN = "not recorded in the file"


def recipe(config: dict[str, Any]) -> str:
    """Return a run's config as a recipe that training reads: JSON, which is also YAML.

    config: complete but for places; see `publication`
    """
    return json.dumps({"defaults": ["config", "_self_"], **config}, indent=2) + "\n"


def model_card(name: str, weights: Weights, encoder: Encoder, digest: str) -> str:
    """Return the README.md of an export, in Markdown with the header that the Hub reads.

    name:   of the export's folder
    digest: SHA-256 of the file with the weights
    """
    p = weights.preprocessing
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    return f"""---
library_name: mcr
pipeline_tag: image-feature-extraction
license: other
license_name: see-licences-below
tags: [robotics, representation-learning, {weights.backbone}]
---
# {name}

A visual encoder for robot manipulation: {weights.backbone}, {parameters:,} parameters,
{encoder.embed_dim} features per picture.

## Use

```python
import mcr

encoder = mcr.load_model("{name}")  # frozen; takes raw pictures: PIL, uint8, float in [0, 1]
features = encoder(images)  # [B, {encoder.embed_dim}]
print(mcr.verify("{name}"))  # does it still compute what was exported?
```

Without `mcr`: resize the shorter side to {p.resize} pixels ({p.interpolation}, antialiased), crop
the central {p.image_size} x {p.image_size} pixels, scale to [0, 1], subtract {list(p.mean)} and
divide by {list(p.std)}. The tensors have torchvision's names.

## Training

{_training_table(weights, digest)}
{_results_section(weights.provenance.get("results", {}))}
{_reproduction_section(name, weights.provenance)}
## Licences

{_licence_table(weights)}
"""


def _training_table(weights: Weights, digest: str) -> str:
    training = weights.provenance
    dataset, config = training.get("dataset", {}), training.get("config", {})
    return _table(
        {
            "data": dataset.get("name", _UNKNOWN),
            "data fingerprint": dataset.get("fingerprint", _UNKNOWN),
            "episodes": dataset.get("episodes", _UNKNOWN),
            "filters of episodes": _listed(config.get("data", {}).get("selection", {})),
            "steps": training.get("step", _UNKNOWN),
            "started from": _start(config),
            "weights": training.get("weights", "those of the last step"),
            "losses and weights": _listed(config.get("loss_weights", {})),
            "hardware": training.get("hardware", _UNKNOWN),
            "read from": f"{weights.layout} `{weights.path.name}`",
            "software": _listed(training.get("versions", {})),
            "sha256 of the weights": digest,
        }
    )


def _start(config: dict[str, Any]) -> str:
    if "model" not in config:
        return _UNKNOWN
    return config["model"].get("init") or "random weights"


def _results_section(results: dict[str, Any]) -> str:
    if not results:
        return ""
    metrics = {key: f"{value:.4g}" for key, value in results.items() if key != "split"}
    return f"## Results\n\nOn held-out episodes, at the last validation:\n\n{_table(metrics)}"


def _reproduction_section(name: str, training: dict[str, Any]) -> str:
    if "config" not in training:
        return ""
    return f"""## Train it again

The complete configuration is in `{RECIPE_NAME}`. With `mcr`, version
{training.get("versions", {}).get("mcr", _UNKNOWN)}, and the same data:

```bash
mcr train --config-path "$PWD/{name}" --config-name recipe \\
    data.root=DATA run_dir=runs/again
```
"""


def _licence_table(weights: Weights) -> str:
    published = identify(sha256(weights.path)) if weights.path.is_file() else None
    if published:
        return _table(
            {
                "published as": f"{published.name} (arXiv {published.paper})",
                "code": published.code_licence,
                "weights": published.weights_licence,
                "data": published.data,
            }
        )
    return _table(
        {
            "code": "MIT",
            "weights": "the terms of the data that they were trained on",
            "data": "its publisher's; DROID is CC BY 4.0",
        }
    )


def _table(rows: dict[str, Any]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or _UNKNOWN
