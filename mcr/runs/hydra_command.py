"""A program whose options are a typed config: recipe, overrides, `--help`, `--multirun`.

Pre-training and behaviour cloning are started this way. Hydra composes the config. This module
composes it once before Hydra does, so that whatever is wrong with the command line is told in one
sentence, and before anything is opened.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from mcr.errors import UserError, plain_errors, require_choice
from mcr.runs.options import addable, check_overrides, check_values, recipes_folder
from mcr.runs.ranges import ranges_of

_MOST_SWEPT = 50  # values of a sweep that are checked before it starts; its jobs check the others


class HydraCommand:
    """Calls `run` with the config that a command line describes, an instance of `config_class`.

    schema:  the name by which recipes refer to `config_class` in their `defaults`
    recipe:  the file of `cfgs/` that is used without `--config-name`
    renamed: see `check_overrides`
    check:   raises UserError for a config that cannot work; it is called before `run`
    """

    def __init__(
        self,
        run: Callable[[Any], object],
        config_class: type,
        schema: str,
        recipe: str,
        renamed: Mapping[str, str] | None = None,
        check: Callable[[Any], None] | None = None,
    ):
        self._run, self._config_class, self._recipe = run, config_class, recipe
        self._renamed, self._check = renamed, check
        ConfigStore.instance().store(name=schema, node=config_class)

    def __call__(self) -> None:
        """Run the command line of this process.

        A UserError, of an option or raised by `run`, ends it with one line and exit code 2.
        """
        sys.argv[1:] = addable(sys.argv[1:], self._config_class)
        with plain_errors():
            self.check(sys.argv[1:], self._check)
        folder = str(recipes_folder())
        hydra.main(version_base="1.3", config_path=folder, config_name=self._recipe)(self._task)()

    def check(
        self, arguments: Sequence[str], check_config: Callable[[Any], None] | None = None
    ) -> None:
        """Raise UserError if anything is wrong with the arguments; nothing is opened.

        check_config: is called with the config, or, for a sweep, with the config of each job
        """
        options = _parse(addable(arguments, self._config_class))
        overrides = [_parse_override(each) for each in options.overrides]
        check_overrides(options.overrides, self._config_class, self._renamed)
        self._check_recipe(options)
        if options.help or options.hydra_help or options.info or options.config_path:
            return
        if any("${hydra:" in each for each in options.overrides):
            return  # only the job itself can tell the value
        for lines in _jobs(overrides):
            config = self._read(self._compose(options, lines))
            if check_config and not options.cfg:
                check_config(config)

    def _check_recipe(self, options: argparse.Namespace) -> None:
        folders = [recipes_folder()]
        if options.config_dir:
            if not Path(options.config_dir).is_dir():
                raise UserError(f"--config-dir {options.config_dir}: there is no such folder")
            folders.append(Path(options.config_dir))
        names = {
            str(path.relative_to(folder).with_suffix(""))
            for folder in folders
            for path in folder.rglob("*.yaml")
        }
        if options.config_name and not options.config_path:
            require_choice("--config-name", options.config_name.removesuffix(".yaml"), names)

    def _compose(self, options: argparse.Namespace, overrides: list[str]) -> DictConfig:
        name, folder = options.config_name or self._recipe, recipes_folder()
        if options.config_dir:
            # Hydra looks for the recipe itself in one folder only, and for its parts in both.
            own, other = Path(options.config_dir).absolute(), folder
            if not (own / name).with_suffix(".yaml").is_file():
                own, other = other, own
            folder = own
            overrides = [*overrides, f"hydra.searchpath=['file://{other}']"]
        running = HydraConfig.instance()  # what `${hydra:...}` in a recipe refers to
        with (
            self._plain_errors(),
            hydra.initialize_config_dir(str(folder), version_base="1.3"),
        ):
            composed = hydra.compose(name, overrides, return_hydra_config=True)
            running.set_config(composed)
            try:
                with flag_override(composed, ["struct", "readonly"], [False, False]):
                    del composed["hydra"]
                OmegaConf.resolve(composed)
            finally:
                running.cfg = None
        return composed

    def _read(self, composed: DictConfig) -> Any:
        """Return the config that Hydra composed, as an instance of `config_class`."""
        with self._plain_errors():
            check_values(OmegaConf.to_container(composed, resolve=True), self._config_class)
            return OmegaConf.to_object(composed)

    def _task(self, composed: DictConfig) -> None:
        with plain_errors():
            self._run(self._read(composed))

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turn what Hydra and OmegaConf raise into a UserError, which names the option."""
        try:
            yield
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_sentence(error, self._config_class)) from error


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments as Hydra does. Raises UserError for an option that Hydra lacks."""
    parser = get_args_parser()

    def complain(message: str) -> None:
        raise UserError(f"{message}; see --help, or --hydra-help for the options of Hydra")

    parser.error = complain  # type: ignore[method-assign, assignment]
    return parser.parse_args(list(arguments))


def _parse_override(argument: str) -> Override:
    if "=" not in argument and not argument.startswith("~"):
        raise UserError(f"{argument!r} is no option: options are written KEY=VALUE; see --help")
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{argument}: cannot be read as KEY=VALUE ({reason}); put a value with special "
            "characters in quotes: \"KEY='VALUE'\""
        ) from error


def _jobs(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Yield the overrides of jobs that together have every value of every sweep.

    Without a sweep there is one job.
    """
    fixed, sweeps = [], []
    for override in overrides:
        if override.is_choice_sweep() or override.is_range_sweep():
            swept = islice(override.sweep_string_iterator(), _MOST_SWEPT)
            sweeps.append([f"{override.get_key_element()}={value}" for value in swept])
        elif not override.is_sweep_override():  # the values of others are known to the sweeper only
            fixed.append(override.input_line or "")
    fixed = [line for line in fixed if not line.lstrip("+~").startswith("hydra")]
    first = [values[0] for values in sweeps]
    yield [*fixed, *first]
    for place, values in enumerate(sweeps):
        for value in values[1:]:
            yield [*fixed, *first[:place], value, *first[place + 1 :]]


def _sentence(error: BaseException, config_class: type) -> str:
    """Say what is wrong in one sentence, with the option's name, its value and its range."""
    ranges, cause = ranges_of(config_class), error
    while cause is not None:
        key = str(getattr(cause, "full_key", "")).partition("[")[0]
        if key in ranges:
            return ranges[key].complaint(key, getattr(cause, "value", None))
        cause = cause.__cause__  # type: ignore[assignment]
    said = " ".join(str(error.__cause__ or error).split())
    return f"the options do not fit together: {said}"
