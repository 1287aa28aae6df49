#!/usr/bin/env python
"""Which recipe gives better features: pretrains candidates, one change at a time, and judges them.

    python benchmarks/study.py OUT --data sim_droid/1.0.0 \\
        --judge resources/sample_droid/1.0.0 lift.hdf5
    python benchmarks/study.py OUT --data sim_droid/1.0.0 --candidates full balanced --seeds 0 1 2
    python benchmarks/study.py OUT --data sim_droid/1.0.0 -- steps=600 model.image_size=64
    python benchmarks/study.py OUT --data sim_droid/1.0.0 --candidates full slowly frozen_bn \\
        -- model.backbone=timm:tf_efficientnet_lite0 model.init=efficientnet_lite0

A queue that may run for hours: type the same command again to continue it. Each candidate of
CANDIDATES is the recipe `simulation` with a few options changed. What follows `--` is changed in
all of them, so that other networks and weights to start from can be studied, too. Candidates are
judged by the offline suite (`mcr evaluate`) on each data set after --judge: by R2 of state and
action, from features alone, on held-out sessions. These are development data; the sealed tasks of
docs/evaluation.md are for the few recipes that are left at the end.

    OUT/encoders/NAME/seed0/   the encoder, for `mcr.load_model`; its run's log is beside it
        judged/DATA/           results of the offline suite, with the rows that are always there
        study.csv              a row per candidate, seed, data set and score, with its commit
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
from pathlib import Path

import pandas as pd

from mcr.errors import UserError, command_line, require_choice
from mcr.evaluation.offline import evaluate_offline
from mcr.release.export import export_encoder
from mcr.runs.atomic import atomic_path, write_text
from mcr.runs.processes import processor
from mcr.training.checkpoint import list_checkpoints

ROOT = Path(__file__).parents[1]
FULL = "full"  # what the others are compared with
_DYNAMICS, _TIME = "objectives.dynamics_alignment", "objectives.time_contrastive"
EQUAL = ["loss_weights.action_prediction=1", "loss_weights.time_contrastive=1"]
LITE0, IMAGENET = "model.backbone=timm:tf_efficientnet_lite0", "model.init=efficientnet_lite0"

# name -> options that differ from the recipe `simulation`
CANDIDATES: dict[str, list[str]] = {
    FULL: [],
    "equal_weights": EQUAL,
    "balanced": [*EQUAL, "balance_losses=true"],
    "absolute_poses": ["data.action_space=default"],
    "delta_poses": ["data.action_space=delta"],
    "chunks_of_8": ["data.sampling.action_chunk=8"],
    "batch_contrast": [f"{_DYNAMICS}.negatives=batch", f"{_DYNAMICS}.learn_temperature=true"],
    "state_contrast": ["loss_weights.time_contrastive=0", "loss_weights.state_contrast=1"],
    "late_after_middle": ["data.sampling.late_after_middle=true"],
    "wrist_too": [
        "data.cameras=[exterior_image_1_left,exterior_image_2_left,wrist_image_left]",
    ],
    "crop_per_clip": ["data.sampling.crop_per=clip"],
    "no_jitter": ["data.sampling.color_jitter=0"],
    "taught": [
        "loss_weights.distillation=1",
        "objectives.distillation.teacher=efficientnet_lite0",
    ],
    "efficientnet": [LITE0],
    "from_imagenet": [LITE0, IMAGENET],
    "from_imagenet_slowly": [LITE0, IMAGENET, "optimizer.backbone_lr_scale=0.1"],
    "slowly": ["optimizer.backbone_lr_scale=0.1"],
    "frozen_bn": ["model.frozen_bn=true"],
    "layer_norm": [f"{_DYNAMICS}.layer_norm=true", f"{_TIME}.layer_norm=true"],
    "cosine": [
        f"{_DYNAMICS}.similarity=cosine",
        f"{_DYNAMICS}.temperature=0.1",
        f"{_TIME}.similarity=cosine",
        f"{_TIME}.temperature=0.1",
    ],
    "no_dynamics_alignment": ["loss_weights.dynamics_alignment=0"],
    "no_action_prediction": ["loss_weights.action_prediction=0"],
    "no_time_contrast": ["loss_weights.time_contrastive=0"],
    "paper": ["ablation=paper"],
}
SCORES = ("state_ridge", "state_mlp", "action_ridge", "action_mlp")


@command_line
def main() -> None:
    options = parse()
    print(f"hardware: {processor()}", flush=True)
    until = time.monotonic() + options.budget if options.budget else None
    for seed, name in itertools.product(options.seeds, options.candidates):
        encoder = options.out / "encoders" / name / f"seed{seed}"
        if not encoder.is_dir():
            if until and time.monotonic() > until:
                print(f"the budget of {options.budget:.0f} s is spent")
                break
            pretrain(name, seed, encoder, options)
        for data in options.judge:
            judge(f"{name}/seed{seed}", encoder, data, options)
    if options.judge:
        print(report(options))


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
    parser.add_argument("--budget", type=float, help="seconds after which no new run begins")
    parser.add_argument("--device", default="cpu", help="where encoders are judged; default: cpu")
    options = parser.parse_args(arguments)
    for name in options.candidates:
        require_choice("candidate", name, CANDIDATES)
    options.overrides = overrides
    return options


# --------------------------------------------------------------------------- one candidate


def pretrain(name: str, seed: int, encoder: Path, options: argparse.Namespace) -> None:
    """Train a candidate, and export its encoder. A run that was interrupted is continued."""
    print(f"\n=== {name}, seed {seed}", flush=True)
    run = options.out / "runs" / name / f"seed{seed}"
    settings = [f"data.root={options.data}", f"run_dir={run}", f"seed={seed}", "pictures_every=0"]
    command = [sys.executable, "-m", "mcr.training.train", "--config-name", "simulation"]
    finished = subprocess.run([*command, *settings, *CANDIDATES[name], *options.overrides])
    if finished.returncode:
        raise UserError(f"the training of {name}, seed {seed}, ended with an error: see above")
    partial = encoder.with_name(f"{encoder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    export_encoder(list_checkpoints(run / "checkpoints")[-1], partial)
    for kept in ("metrics.jsonl", "config.yaml", "versions.json", "dataset.json"):
        shutil.copyfile(run / kept, partial / kept)
    write_text(partial / "commit.txt", commit() + "\n")
    partial.rename(encoder)
    shutil.rmtree(run / "checkpoints")  # three times the size of the encoder


def commit() -> str:
    """The commit of the working tree, with a mark if it has changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def judge(name: str, encoder: Path, data: str, options: argparse.Namespace) -> None:
    """Score an encoder on a data set by the offline suite, if that was not done before."""
    folder = judged(options.out, data)
    evaluate_offline([f"{name}={encoder}"], data, folder, device=options.device)


def judged(out: Path, data: str) -> Path:
    """The folder of the results on a data set: "1.0.0" alone does not name one."""
    return out / "judged" / "_".join(Path(data).resolve().parts[-2:])


# --------------------------------------------------------------------------- the table


def report(options: argparse.Namespace) -> str:
    """Write study.csv and study.md. Returns the table."""
    rows = pd.concat([scores(options.out, data) for data in options.judge])
    with atomic_path(options.out / "study.csv") as partial:
        rows.to_csv(partial, index=False)
    of_runs = rows.pivot_table(index=["candidate", "seed"], columns="score", values="value")
    of_runs["mean"] = of_runs.mean(axis=1)
    means = of_runs.groupby("candidate").mean().sort_values("mean", ascending=False)
    lines = [
        f"| candidate | {' | '.join(means.columns)} | against `{FULL}`, seed by seed |",
        f"|---|{'---|' * (len(means.columns) + 1)}",
    ]
    for name, values in means.iterrows():
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {cells} | {against_full(of_runs['mean'], str(name))} |")
    text = "\n".join(lines) + "\n"
    write_text(options.out / "study.md", text)
    return "\n" + text


def scores(out: Path, data: str) -> pd.DataFrame:
    """A row per candidate, seed and score on one data set."""
    folder = judged(out, data)
    found = pd.read_csv(folder / "results.csv")
    found = found[found["task"].isin(SCORES)]
    names = found["encoder"].str.extract(r"^(?P<candidate>.*?)(?:/seed(?P<seed>\d+))?$")
    commits = [
        (Path(source) / "commit.txt").read_text().strip()
        if (Path(source) / "commit.txt").is_file()
        else ""
        for source in found["source"]
    ]
    return pd.DataFrame(
        {
            "candidate": names["candidate"],
            "seed": names["seed"].fillna("-"),
            "data": folder.name,
            "score": found["task"],
            "value": found["value"],
            "low": found["low"],
            "high": found["high"],
            "commit": commits,
        }
    )


def against_full(means: pd.Series, name: str) -> str:
    """The difference of each seed's mean score to that of the full recipe with this seed."""
    seeds = means[name].index
    differences = [
        f"{means[name, seed] - means[FULL, seed]:+.3f}" for seed in seeds if (FULL, seed) in means
    ]
    return ", ".join(differences)


if __name__ == "__main__":
    main()
