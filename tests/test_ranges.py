"""Every option, of every config, is refused outside of its range, in one sentence."""

from __future__ import annotations

import dataclasses
import math
from typing import get_type_hints

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mcr.errors import UserError
from mcr.evaluation.recorded_frames import OfflineConfig
from mcr.features.extraction import FeatureConfig
from mcr.policies import behaviour_cloning
from mcr.policies.config import Config as CloningConfig
from mcr.policies.ensemble import EnsembleConfig
from mcr.runs.options import check_values, known_keys
from mcr.runs.ranges import check_fields, choice, each, number, optional, ranges_of, whole
from mcr.simulation.simulator import PictureConfig
from mcr.training import train
from mcr.training.config import Config

COMMANDS = {Config: train.main, CloningConfig: behaviour_cloning.main}
CONFIGS = (*COMMANDS, OfflineConfig, FeatureConfig, EnsembleConfig, PictureConfig)
FIELDS = [
    pytest.param(config, key, id=f"{config.__module__}.{key}")
    for config in CONFIGS
    for key in sorted(known_keys(config))
]


def nested(key, value):
    """ "a.b", 1 -> {"a": {"b": 1}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def owner(config, key):
    """The dataclass that has the field `key`, and the field's own name."""
    *parents, name = key.split(".")
    for parent in parents:
        config = get_type_hints(config)[parent]
    return config, name


@pytest.mark.parametrize("config, key", FIELDS)
def test_every_field_declares_its_range_and_keeps_to_it(config, key):
    declared = ranges_of(config).get(key)
    assert declared is not None, f"{key} declares no range: give it one of mcr/runs/ranges.py"
    part, name = owner(config, key)
    assert declared.outside and declared.holds(getattr(part(), name))
    for value in declared.outside:
        with pytest.raises(UserError, match=rf"{name}=.* (must be|is unknown)") as error:
            part(**{name: value})
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=rf"^{key}=.* (must be|is unknown)"):
            check_values(nested(key, value), config)


def written(value) -> str:
    """A value as Hydra's command line has it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    return f"'{value}'" if isinstance(value, str) else str(value)


def texts(value):
    """What OmegaConf makes of a value where it expects texts."""
    return [texts(item) for item in value] if isinstance(value, list) else str(value)


@pytest.mark.parametrize("config", COMMANDS, ids=lambda config: config.__module__)
def test_options_of_a_command_line_are_refused_out_of_its_range(config):
    """One option of each range, because each try costs a whole composition by Hydra."""
    options = {declared.allowed: (key, declared) for key, declared in ranges_of(config).items()}
    for key, declared in options.values():
        values = [v for v in declared.outside if "\0" not in str(v)]
        values = [v for v in values if not declared.holds(texts(v))]
        if not values:
            continue  # any text will do
        line = f"{key}={written(values[-1])}"
        OverridesParser.create().parse_override(line)  # the test writes what Hydra can read
        with pytest.raises(UserError, match=rf"^{key}=.* (must be|is unknown)") as error:
            COMMANDS[config].check([line])
        assert "\n" not in str(error.value)


TRIES = {
    "seed=-1": "seed=-1 must be a whole number of at least 0",
    "steps=many": "steps='many' must be a whole number",
    "steps=1.5": "steps=1.5 must be a whole number",
    "optimizer.lr=nan": "optimizer.lr=nan must be a finite number of at least 0",
    "optimizer.weight_decay=-1": "weight_decay=-1.0 must be a finite number of at least 0",
    "data.prefetch=0": "data.prefetch=0 must be a whole number of at least 1",
    "data.sampling.alpha=5": "data.sampling.alpha=5.0 must be a finite number above 0 and below 1",
    "data.sampling.crop_scale=[0,0]": r"crop_scale=\[0.0, 0.0\] must be a list of 2 values",
    "data.sampling.crop_scale=[nan,1]": r"crop_scale=\[nan, 1.0\] must be a list of 2 values",
    "data.sampling.crop_scale=[1,0.5]": "in ascending order",
    "data.cameras=left": "data.cameras='left' must be a list",
    "engine.compile=zzz": "engine.compile='zzz' is unknown; choose from: auto",
    "engine.compile=of": "engine.compile='of' is unknown; did you mean 'off'",
    "model.frozen_bn=maybe": "model.frozen_bn='maybe' must be true or false",
    "model.backbone=resnet51": "model.backbone='resnet51' is unknown; did you mean 'resnet50'",
    "device=meta": "device='meta' must be a device: auto, cpu, cuda",
    "run_dir=/etc/passwd": "run_dir='/etc/passwd' must be a folder",
    "loss_weights.time_contrast=1": "'time_contrast' is unknown; did you mean 'time_contrastive'",
    "+loss_weights.time_contrast=1": "'time_contrast' is unknown; did you mean 'time_contrastive'",
    "loss_weights.distillation=-1": "loss_weights=.*must be a mapping",
    "+ablation=fulll": "recipe in ablation='fulll' is unknown; did you mean 'full'",
    "--config-name=papers": "--config-name='papers' is unknown; did you mean 'paper'",
    "--config-dir=/no/such": "--config-dir /no/such: there is no such folder",
    "--foo": "unrecognized arguments: --foo",
    "steps": "'steps' is no option: options are written KEY=VALUE",
    "run_dir=a(b": "cannot be read as KEY=VALUE",
    "data.roott=x": "unknown option 'data.roott'; did you mean 'data.root'",
    "objectives.time_contrastive.grou=3": "did you mean 'objectives.time_contrastive.group'",
    "model=x": "unknown option 'model'",
    "run_dir=${no.such.key}": "run_dir|no.such.key",
    "data.root=???": "data.root",
}


@pytest.mark.parametrize("argument", TRIES)
def test_named_tries(argument):
    with pytest.raises(UserError, match=TRIES[argument]) as error:
        train.main.check(["data.root=x"] * (argument != "data.root=???") + [argument], train._check)
    assert "\n" not in str(error.value)


def test_a_sweep_is_refused_for_any_of_its_values():
    train.main.check(["-m", "optimizer.lr=1,2", "seed=range(0,3)"])
    with pytest.raises(UserError, match=r"optimizer.lr=-2.0 must be"):
        train.main.check(["-m", "seed=1,2", "optimizer.lr=1,-2"])
    with pytest.raises(UserError, match=r"seed=-1 must be"):
        train.main.check(["-m", "seed=range(-1,3)", "optimizer.lr=1,2"])


def test_what_only_asks_is_not_checked_further():
    for arguments in (["--help"], ["--hydra-help"], ["--cfg", "job"], ["--info"]):
        train.main.check(arguments, train._check)  # data.root is not set


def test_no_state_keys_stand_for_those_of_the_schema():
    train.main.check(["data.root=x", "data.state_keys=[]"], train._check)
    with pytest.raises(UserError, match=r"data.state_keys=\[''\] must be a list, each a text that"):
        train.main.check(["data.root=x", "data.state_keys=['']"], train._check)


def test_several_processes_must_share_the_batch():
    with pytest.raises(UserError, match="batch_size=32 clips do not divide by 5 processes"):
        train.check_options(["data.root=x"], 5)


# --------------------------------------------------------------------------- the ranges themselves


@pytest.mark.parametrize(
    ("allowed", "inside"),
    [
        (whole(0), (0, 7, np.int64(3))),
        (whole(1, 3), (1, 3)),
        (number(above=0, most=1), (1, 0.5, np.float32(0.1))),
        (number(least=0, below=1), (0, 0.99)),
        (choice("ab"), ("a", "b")),
        (optional(choice("ab")), ("", "a")),
        (each(whole(1)), ([], [1, 2], (3,))),
        (each(number(), count=2, ordered=True), ([1, 2], (1.5, 1.5))),
    ],
)
def test_ranges_hold_what_they_should(allowed, inside):
    assert all(map(allowed.holds, inside)) and not any(map(allowed.holds, allowed.outside))


def test_a_truth_value_is_no_number():
    assert not whole(0).holds(True) and not number().holds(False)


def test_a_new_field_without_a_range_is_found():
    @dataclasses.dataclass
    class New:
        size: int = 3

    New.__annotations__["size"] = int
    assert known_keys(New) == {"size"} and ranges_of(New) == {}


def test_fields_are_checked_with_their_prefix():
    config = PictureConfig()
    object.__setattr__(config, "picture_size", math.nan)
    with pytest.raises(UserError, match="^pictures.picture_size=nan must be a whole number"):
        check_fields(config, "pictures.")
