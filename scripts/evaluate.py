"""Encoders -> how much they help: success rates of policies in simulation, or scores on recordings.

    python scripts/evaluate.py my_encoder r3m=r3m_resnet50 --suite metaworld --seeds 3
    python scripts/evaluate.py my_encoder --suite offline --data resources/sample_droid/1.0.0

An untrained encoder of each network is always a row; where policies act, so is one that sees no
pictures. Typed again, it goes on where it was stopped.
"""

import argparse
from pathlib import Path

from mcr.errors import UserError, command_line
from mcr.simulation.simulator import LOOKS, PictureConfig
from mcr.simulation.tasks import SUITES

OFFLINE = "offline"


@command_line
def main() -> None:
    arguments = _parse_arguments()
    out = Path(arguments.out or f"evaluation_{arguments.suite}")
    if arguments.suite == OFFLINE:
        text = _evaluate_offline(arguments, out)
    else:
        text = _evaluate_in_simulation(arguments, out)
    print(f"\n{text}\n{out}: results.csv, results.md, results.png")


def _evaluate_in_simulation(arguments: argparse.Namespace, out: Path) -> str:
    from mcr.evaluation.success_rates import Protocol, evaluate_in_simulation
    from mcr.policies.ensemble import EnsembleConfig

    protocol = Protocol(
        demonstrations=arguments.demonstrations,
        rollouts=arguments.rollouts,
        seeds=arguments.seeds,
        pictures=PictureConfig(arguments.picture_size, tuple(arguments.cameras), arguments.looks),
        policy=EnsembleConfig(
            hidden=arguments.hidden, dropout=arguments.dropout, epochs=arguments.epochs
        ),
    )
    return evaluate_in_simulation(
        arguments.encoders,
        arguments.suite,
        arguments.tasks,
        protocol,
        out,
        arguments.from_scratch,
        arguments.processes,
        arguments.device,
    )


def _evaluate_offline(arguments: argparse.Namespace, out: Path) -> str:
    from mcr.data.selection import SelectionConfig
    from mcr.evaluation.offline import OfflineConfig, evaluate_offline

    if arguments.data is None:
        raise UserError("--suite offline needs --data: shards or a tree, as training reads them")
    config = OfflineConfig(
        cameras=arguments.cameras,
        selection=SelectionConfig(val_fraction=arguments.val_fraction),
        num_seeds=arguments.seeds,
    )
    return evaluate_offline(arguments.encoders, arguments.data, out, config, arguments.device)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluate frozen encoders. Suites metaworld and robosuite: demonstrations of "
        "scripted experts, features, behaviour cloning, rollouts, success rates with 95%% "
        "intervals (each suite is an extra: pip install 'mcr[metaworld]'). Suite offline: probes, "
        "temporal order, retrieval and feature health on recordings, without a simulator."
    )
    parser.add_argument(
        "encoders", nargs="+", metavar="ENCODER", help="what mcr.load_model reads, or NAME=that"
    )
    parser.add_argument("--suite", required=True, choices=[*SUITES, OFFLINE])
    parser.add_argument("--tasks", nargs="+", default=[], help="default: all of the suite")
    parser.add_argument("--seeds", type=int, default=3, help="policies per task; default: 3")
    parser.add_argument("--rollouts", type=int, default=20, help="per seed and task; default: 20")
    parser.add_argument("--demonstrations", type=int, default=25, help="per task; default: 25")
    parser.add_argument("--epochs", type=int, default=100, help="of a policy; default: 100")
    parser.add_argument(
        "--hidden",
        nargs="+",
        type=int,
        default=[256, 256, 256],
        metavar="UNITS",
        help="of a policy's layers; default: 256 256 256",
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="of a policy; default: 0")
    parser.add_argument("--picture-size", type=int, default=224, help="pixels; default: 224")
    parser.add_argument("--cameras", nargs="+", default=[], help="default: the suite's")
    parser.add_argument(
        "--looks",
        default="fixed",
        choices=LOOKS,
        help="of scenes in simulation; varied: cameras, light and colours drawn anew for each; "
        "default: fixed",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="also a row whose untrained encoder learns with the policy; hours without a GPU",
    )
    parser.add_argument("--data", help="of suite offline: shards or a tree")
    parser.add_argument(
        "--val-fraction", type=float, default=0.25, help="of sessions, held out; default: 0.25"
    )
    parser.add_argument("--out", help="folder; default: evaluation_SUITE")
    parser.add_argument("--processes", type=int, default=0, help="default: one per core")
    parser.add_argument("--device", default="cpu", help="of the encoder; default: cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
