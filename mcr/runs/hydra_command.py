"""A program whose options are a typed config: recipe, overrides, `--help`, `--multirun`.

Pre-training and behaviour cloning are started this way. Hydra composes the config.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from mcr.errors import plain_errors
from mcr.runs.options import check_overrides, recipes_folder


def hydra_command(
    run: Callable[[Any], object],
    config_class: type,
    schema: str,
    recipe: str,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Call `run` with the config that the command line describes, an instance of `config_class`.

    schema:  the name by which recipes refer to `config_class` in their `defaults`
    recipe:  the file of `cfgs/` that is used without `--config-name`
    renamed: see `check_overrides`
    A UserError, of an override or raised by `run`, ends the program with one line and exit code 2.
    """

    def task(options: DictConfig) -> None:
        with plain_errors():
            run(OmegaConf.to_object(options))

    ConfigStore.instance().store(name=schema, node=config_class)
    with plain_errors():
        check_overrides(sys.argv[1:], config_class, renamed)
    hydra.main(version_base="1.3", config_path=str(recipes_folder()), config_name=recipe)(task)()
