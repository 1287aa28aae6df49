"""The folder of a pre-training run: the description of the run, its metrics, and how to read them.

`train.py` writes the description when a run starts or continues. `summary.py` and the comparison of
runs read it. For checkpoints see `checkpoint.py`.

    <run_dir>/config.yaml    the options of the run
              versions.json  software, processes and hardware
              dataset.json   name, fingerprint and number of episodes of the data
              launch.json    when, where and by which command the run was last started
              metrics.jsonl  see `runs/log.py`
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import mcr
from mcr.errors import UserError
from mcr.runs.atomic import write_text
from mcr.runs.processes import processor
from mcr.training.config import RENAMED, Config

KNOWN_CHANCE = {"order_accuracy": 0.5, "r2": 0.0}  # other chance levels are in the log
NUM_FINAL_LINES = 10  # single training lines are noisy, so their final value is a mean


def save_description(
    run_dir: Path, config: Config, dataset: dict[str, Any], report: list[str], where: dict[str, Any]
) -> None:
    """Write the description of a run that is about to start or continue.

    dataset: for dataset.json; report: lines that say what is trained on
    where:   the hardware and the number of processes, for versions.json
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
    write_text(run_dir / "versions.json", json.dumps(versions() | where, indent=1))
    write_text(run_dir / "dataset.json", json.dumps(dataset, indent=1))
    save_launch(run_dir, report)


def save_launch(run_dir: Path, report: list[str]) -> None:
    """Write launch.json: when, where and by which command this process was started."""
    launch = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "folder": os.getcwd(),
        "data": report,
    }
    write_text(run_dir / "launch.json", json.dumps(launch, indent=1))


def versions() -> dict[str, str]:
    """Return the versions of the software that decides what a run computes."""
    packages = ("torch", "torchvision", "numpy")
    return {
        "mcr": mcr.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def hardware(device: torch.device) -> str:
    """Describe in words what the run computes on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({torch.cuda.device_count()} visible)"
    return f"{processor()}, threads: {torch.get_num_threads()}"


def load_config(run_dir: str | Path) -> Config:
    """Return the config that a run saved.

    Keys that an earlier version of mcr called otherwise are read too. Raises UserError if there is
    no config, or one that this version does not understand.
    """
    path = _file_of_run(run_dir, "config.yaml")
    try:
        saved: Any = OmegaConf.load(path)
        for old, new in RENAMED.items():
            if (value := OmegaConf.select(saved, old)) is not None:
                OmegaConf.update(saved, new, value)
                parent, _, name = old.rpartition(".")
                del OmegaConf.select(saved, parent)[name]
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), saved))
    except OmegaConfBaseException as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{path}: {what}; another version of mcr wrote it") from error
    assert isinstance(config, Config)
    return config


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """Read metrics.jsonl as a table: "step", "split" ("train", "val"), and a column per metric."""
    text = _file_of_run(run_dir, "metrics.jsonl").read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()  # a killed run may have cut the last one
    return pd.DataFrame([json.loads(line) for line in lines], columns=None if lines else ["step"])


def _file_of_run(run_dir: str | Path, name: str) -> Path:
    path = Path(run_dir) / name
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the run_dir of a training run")
    return path


def final_metrics(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the final value of each metric: a row per metric, and the columns

    train:  mean of the last 10 lines
    val:    value of the last validation
    chance: value of guessing; NaN where that is not known
    """
    columns = {
        "train": metrics[metrics["split"] == "train"].tail(NUM_FINAL_LINES),
        "val": metrics[metrics["split"] == "val"].tail(1),
    }
    table = pd.DataFrame({name: rows.mean(numeric_only=True) for name, rows in columns.items()})
    table = table.drop(index="step", errors="ignore")
    table["chance"] = [_chance(name, table) for name in table.index]
    return table


def _chance(name: str, table: pd.DataFrame) -> float:
    objective, _, kind = name.rpartition("/")
    logged = f"{objective}/{kind.replace('accuracy', 'chance')}"
    if kind.endswith("accuracy") and logged in table.index:
        return float(table.loc[logged, ["train", "val"]].mean())
    return KNOWN_CHANCE.get(kind, float("nan"))


def final_accuracies(metrics: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return {objective: (held-out accuracy, chance level)} of the last validation.

    It is empty if there was none.
    """
    table = final_metrics(metrics)
    rows = table[table.index.str.endswith("/accuracy") & table["val"].notna()]
    return {
        str(name).removesuffix("/accuracy"): (float(row["val"]), float(row["chance"]))
        for name, row in rows.iterrows()
    }
