#!/usr/bin/env python
"""Which recipe gives better features: pretrains candidates, one change at a time, and judges them.

    python benchmarks/study.py OUT --data sim_droid/1.0.0 \\
        --judge resources/sample_droid/1.0.0 lift.hdf5
    python benchmarks/study.py OUT --data sim_droid/1.0.0 --candidates base balanced --seeds 0 1 2
    python benchmarks/study.py OUT --data sim_droid/1.0.0 -- steps=600 model.image_size=64

A queue that may run for hours: type the same command again to continue it. Each candidate of
CANDIDATES is BASE, where the study began, with a few options changed. What follows `--` is changed
in all of them. Candidates are judged by benchmarks/judge.py on each data set after --judge: by R2
of state and action, from features alone, on held-out sessions. These are development data; the
sealed tasks of docs/evaluation.md are for the few recipes that are left at the end.

    OUT/encoders/NAME/seed0/   the encoder, for `mcr.load_model`; its run's log is beside it
        judged/NAME/seed0.csv  its scores
        study.csv              all scores, with the commit of each encoder
        study.md               the table that is printed: means over seeds, and what each changes

Without --judge it only pretrains, for example on a machine that has a GPU and no other data.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from mcr.errors import UserError, command_line, require_choice
from mcr.evaluation.contestants import with_yardsticks
from mcr.release.export import export_encoder
from mcr.runs.atomic import atomic_path, write_text
from mcr.runs.processes import processor
from mcr.training.checkpoint import list_checkpoints

ROOT = Path(__file__).parents[1]
BASE = "base"  # what the others are compared with
_DYNAMICS, _TIME = "objectives.dynamics_alignment", "objectives.time_contrastive"
_OUTSIDE = "exterior_image_1_left,exterior_image_2_left"
_EQUAL = ["loss_weights.action_prediction=1", "loss_weights.time_contrastive=1"]
_BALANCED = "balance_losses=true"
_FASTER = "optimizer.backbone_lr_scale=0.3"
_BATCH = [f"{_DYNAMICS}.negatives=batch", f"{_DYNAMICS}.learn_temperature=true"]
_STATE = ["loss_weights.time_contrastive=0", "loss_weights.state_contrast=1"]
_TAUGHT = [
    "loss_weights.distillation=1",
    "objectives.distillation.teacher=efficientnet_lite0",
]
_RANDOM = ["model.init=''", "model.frozen_bn=false", "optimizer.backbone_lr_scale=1"]

# what BASE changes in the recipe `simulation`, which is the study's result: candidate "rate_state"
COMMON = [
    "optimizer.backbone_lr_scale=0.1",
    "loss_weights.time_contrastive=0.3",
    "loss_weights.state_contrast=0",
]
# name -> options that differ from BASE
CANDIDATES: dict[str, list[str]] = {
    BASE: [],
    "equal_weights": _EQUAL,
    "balanced": [*_EQUAL, _BALANCED],
    "absolute_poses": ["data.action_space=default"],
    "delta_poses": ["data.action_space=delta"],
    "chunks_of_8": ["data.sampling.action_chunk=8"],
    "batch_contrast": _BATCH,
    "state_contrast": _STATE,
    "late_after_middle": ["data.sampling.late_after_middle=true"],
    "outside_cameras": [f"data.cameras=[{_OUTSIDE}]"],
    "crop_per_clip": ["data.sampling.crop_per=clip"],
    "large_crops": ["data.sampling.crop_scale=[0.8,1]"],
    "no_jitter": ["data.sampling.color_jitter=0"],
    "taught": _TAUGHT,
    "layer_norm": [f"{_DYNAMICS}.layer_norm=true", f"{_TIME}.layer_norm=true"],
    "cosine": [
        f"{_DYNAMICS}.similarity=cosine",
        f"{_DYNAMICS}.temperature=0.1",
        f"{_TIME}.similarity=cosine",
        f"{_TIME}.temperature=0.1",
    ],
    "rate_0.03": ["optimizer.backbone_lr_scale=0.03"],
    "rate_0.3": [_FASTER],
    "rate_1": ["optimizer.backbone_lr_scale=1"],
    "live_statistics": ["model.frozen_bn=false", "optimizer.backbone_lr_scale=1"],
    "random_weights": _RANDOM,
    "rate_state": [_FASTER, *_STATE],
    "rate_state_batch": [_FASTER, *_STATE, *_BATCH],
    "rate_batch": [_FASTER, *_BATCH],
    "rate_state_and_time": [_FASTER, "loss_weights.state_contrast=1"],
    "rate_state_taught": [_FASTER, *_STATE, *_TAUGHT],
    "rate_state_balanced": [_FASTER, *_STATE, "loss_weights.action_prediction=1", _BALANCED],
    "no_dynamics_alignment": ["loss_weights.dynamics_alignment=0"],
    "no_action_prediction": ["loss_weights.action_prediction=0"],
    "no_contrast": ["loss_weights.time_contrastive=0", "loss_weights.state_contrast=0"],
    "paper": ["ablation=paper", *_RANDOM, *_EQUAL, f"data.cameras=[{_OUTSIDE}]"],
}


@command_line
def main() -> None:
    options = parse()
    print(f"hardware: {processor()}", flush=True)
    until = time.monotonic() + options.budget if options.budget else None
    runs = list(itertools.product(options.seeds, options.candidates))
    failures = at_once(options, pretrain_and_judge, [(*run, options, until) for run in runs])
    if options.judge:
        named = [(name, source, options) for name, source in yardsticks(options.out).items()]
        failures += at_once(options, judge, named)
        print(report(options.out))
    if failures:
        raise UserError("\n".join(failures))


def at_once(
    options: argparse.Namespace, work: Callable[..., None], calls: list[tuple]
) -> list[str]:
    """Make the calls, `--parallel` of them at once. Returns the messages of those that failed."""
    with ThreadPoolExecutor(options.parallel) as threads:
        errors = [each.exception() for each in [threads.submit(work, *call) for call in calls]]
    for error in errors:
        if error and not isinstance(error, UserError):
            raise error
    return [str(error) for error in errors if error]


def yardsticks(out: Path) -> dict[str, str]:
    """The untrained encoders of the kinds that were trained, and ImageNet's: {name: source}."""
    encoders = sorted((out / "encoders").glob("*/seed*[0-9]"))
    trained = [f"{path.parent.name}/{path.name}={path}" for path in encoders]
    sources, _ = with_yardsticks(trained, out / "untrained")
    return {name: sources[name] for name in sources if "/seed" not in name}


def parse() -> argparse.Namespace:
    arguments, overrides = sys.argv[1:], []
    if "--" in arguments:  # argparse would mix what follows with --judge
        place = arguments.index("--")
        arguments, overrides = arguments[:place], arguments[place + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of everything; type it again to continue")
    parser.add_argument("--data", required=True, help="the data set to pretrain on")
    parser.add_argument("--judge", nargs="+", default=[], metavar="DATA")
    parser.add_argument(
        "--candidates", nargs="+", default=list(CANDIDATES), metavar="NAME", help="default: all"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--parallel", type=int, default=1, help="candidates at once; default: 1")
    parser.add_argument("--budget", type=float, help="seconds after which no new run begins")
    parser.add_argument("--device", default="cpu", help="where encoders are judged; default: cpu")
    options = parser.parse_args(arguments)
    for name in options.candidates:
        require_choice("candidate", name, CANDIDATES)
    options.overrides = overrides
    return options


# --------------------------------------------------------------------------- one candidate


def pretrain_and_judge(
    seed: int, name: str, options: argparse.Namespace, until: float | None
) -> None:
    """Train a candidate and score its encoder, unless this was done before or is too late."""
    encoder = options.out / "encoders" / name / f"seed{seed}"
    if not encoder.is_dir():
        if until and time.monotonic() > until:
            print(f"{name}, seed {seed}: not begun, because the budget is spent", flush=True)
            return
        pretrain(name, seed, encoder, options)
    if options.judge:
        judge(f"{name}/seed{seed}", str(encoder), options)


def pretrain(name: str, seed: int, encoder: Path, options: argparse.Namespace) -> None:
    """Train a candidate, and export its encoder. A run that was interrupted is continued."""
    began = time.monotonic()
    run = options.out / "runs" / name / f"seed{seed}"
    run.parent.mkdir(parents=True, exist_ok=True)
    settings = [f"data.root={options.data}", f"run_dir={run}", f"seed={seed}", "pictures_every=0"]
    settings += [*COMMON, *options.overrides, *CANDIDATES[name]]
    command = [sys.executable, "-m", "mcr.training.train", "--config-name", "simulation"]
    log = run.with_suffix(".log")
    with log.open("a") as file:
        finished = subprocess.run([*command, *settings], stdout=file, stderr=subprocess.STDOUT)
    if finished.returncode:
        last = "\n".join(log.read_text().splitlines()[-5:])
        raise UserError(f"{name}, seed {seed}: training ended with an error; see {log}:\n{last}")
    partial = encoder.with_name(f"{encoder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    export_encoder(list_checkpoints(run / "checkpoints")[-1], partial)
    for kept in ("metrics.jsonl", "config.yaml", "versions.json", "dataset.json"):
        shutil.copyfile(run / kept, partial / kept)
    write_text(partial / "commit.txt", commit() + "\n")
    partial.rename(encoder)
    shutil.rmtree(run / "checkpoints")  # three times the size of the encoder
    print(f"{name}, seed {seed}: trained in {time.monotonic() - began:.0f} s", flush=True)


def commit() -> str:
    """The commit of the working tree, with a mark if it has changes; "" without git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def judge(name: str, source: str, options: argparse.Namespace) -> None:
    """Score an encoder on the data sets after --judge, if that was not done before."""
    scores = options.out / "judged" / f"{name}.csv"
    if scores.exists():
        return
    began = time.monotonic()
    command = [sys.executable, str(ROOT / "benchmarks/judge.py"), source, str(scores)]
    command += ["--name", name, "--device", options.device, "--data", *options.judge]
    if subprocess.run(command).returncode:
        raise UserError(f"{name}: judging ended with an error: see above")
    print(f"{name}: judged in {time.monotonic() - began:.0f} s", flush=True)


# --------------------------------------------------------------------------- the table


def report(out: Path) -> str:
    """Write study.csv and study.md. Returns the table."""
    rows = pd.concat([pd.read_csv(path) for path in sorted((out / "judged").rglob("*.csv"))])
    names = rows["encoder"].str.extract(r"^(?P<candidate>.*?)(?:/seed(?P<seed>\d+))?$")
    rows.insert(0, "candidate", names["candidate"])
    rows.insert(1, "seed", names["seed"].fillna("-"))
    commits = {path: path.read_text().strip() for path in (out / "encoders").rglob("commit.txt")}
    rows["commit"] = [commits.get(Path(path) / "commit.txt", "") for path in rows["source"]]
    with atomic_path(out / "study.csv") as partial:
        rows.drop(columns=["encoder", "source"]).to_csv(partial, index=False)
    scores = rows["data"] + ": " + rows["score"]
    of_runs = rows.assign(score=scores).pivot_table(
        index=["candidate", "seed"], columns="score", values="value"
    )
    of_runs["mean"] = of_runs.mean(axis=1)
    means = of_runs.groupby("candidate").mean().sort_values("mean", ascending=False)
    lines = [
        f"| candidate | {' | '.join(means.columns)} | against `{BASE}`, seed by seed |",
        f"|---|{'---|' * (len(means.columns) + 1)}",
    ]
    for name, values in means.iterrows():
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {cells} | {against_base(of_runs['mean'], str(name))} |")
    text = "\n".join(lines) + "\n"
    write_text(out / "study.md", text)
    return "\n" + text


def against_base(means: pd.Series, name: str) -> str:
    """The difference of each seed's mean score to that of BASE with this seed."""
    seeds = means[name].index
    differences = [
        f"{means[name, seed] - means[BASE, seed]:+.3f}" for seed in seeds if (BASE, seed) in means
    ]
    return ", ".join(differences)


if __name__ == "__main__":
    main()
