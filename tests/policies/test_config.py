"""The nested config, and the flat one of earlier versions."""

from __future__ import annotations

from dataclasses import asdict

from mcr.policies.config import RENAMED, Config, nest
from mcr.policies.network import PolicyConfig
from mcr.runs.options import flatten, known_keys


def test_every_new_name_is_an_option():
    assert set(RENAMED.values()) <= known_keys(Config)
    assert all(new.endswith(f".{old}") for old, new in RENAMED.items())


def test_a_flat_config_is_nested():
    config = Config(policy=PolicyConfig(hidden=[8], chunk=3), seed=5)
    flat = {key.rpartition(".")[2]: value for key, value in flatten(config).items()}
    assert flat["chunk"] == 3 and flat["seed"] == 5 and "policy" not in flat
    expected = asdict(config)
    for new in ("schema", "index"):  # options that no flat config has
        del flat[new], expected["demonstrations"][new]
    assert nest(flat) == expected
