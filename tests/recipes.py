"""Recipes of cfgs/, composed as the command line composes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from mcr.runs.options import recipes_folder
from mcr.training.config import Config


def recipe(name: str, *overrides: str) -> Config:
    """The config of `mcr train --config-name NAME OVERRIDES`."""
    ConfigStore.instance().store(name="config", node=Config)
    config = composed(name, overrides)
    assert isinstance(config, Config)
    return config


def composed(name: str, overrides: Sequence[str]) -> Any:
    """The config of a recipe whose schema is stored already."""
    running = HydraConfig.instance()
    with initialize_config_dir(str(recipes_folder()), version_base="1.3"):
        # what `hydra:` in a recipe refers to, which `compose` alone does not set
        running.set_config(compose(name, list(overrides), return_hydra_config=True))
        try:
            return OmegaConf.to_object(compose(name, list(overrides)))
        finally:
            running.cfg = None
