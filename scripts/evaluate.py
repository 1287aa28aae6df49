"""Encoders -> how much they help: success rates of policies in simulation, or scores on recordings.

    python scripts/evaluate.py my_encoder r3m=r3m_resnet50 --suite metaworld --seeds 3
    python scripts/evaluate.py my_encoder --suite offline --data resources/sample_droid/1.0.0

An untrained encoder of each network is always a row; where policies act, so is one that sees no
pictures. Typed again, it goes on where it was stopped.
"""

import argparse
from pathlib import Path
from typing import Any

from mcr.errors import UserError, command_line, require_choice
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
    from mcr.evaluation.results import success_rates
    from mcr.evaluation.success_rates import PROPRIOCEPTION_ONLY, Contestant, Protocol, evaluate
    from mcr.policies.policy import PolicyConfig

    names = SUITES[arguments.suite]
    tasks = [
        f"{arguments.suite}/{require_choice('task', task, names)}"
        for task in arguments.tasks or names
    ]
    protocol = Protocol(
        demonstrations=arguments.demonstrations,
        rollouts=arguments.rollouts,
        seeds=arguments.seeds,
        pictures=PictureConfig(arguments.picture_size, tuple(arguments.cameras), arguments.looks),
        policy=PolicyConfig(
            hidden=arguments.hidden, dropout=arguments.dropout, epochs=arguments.epochs
        ),
    )
    encoders, untrained = _encoders(arguments.encoders, out)
    contestants = [Contestant(*named) for named in encoders + untrained]
    if arguments.from_scratch:
        contestants += [
            Contestant(name.replace("untrained", "from scratch"), source, learns=True)
            for name, source in untrained
        ]
    contestants.append(Contestant(PROPRIOCEPTION_ONLY, None))
    results = evaluate(contestants, tasks, protocol, out, arguments.processes, arguments.device)
    rows = results.rows[results.rows["task"].isin(tasks)]
    return results.write_report(success_rates(rows), percent=True)


def _evaluate_offline(arguments: argparse.Namespace, out: Path) -> str:
    from mcr.data.index import open_index
    from mcr.data.selection import SelectionConfig
    from mcr.evaluation.offline import SCORES, OfflineConfig, offline_scores
    from mcr.evaluation.results import Results
    from mcr.evaluation.success_rates import versions
    from mcr.features.key import weights_fingerprint
    from mcr.models.loading import load_model

    if arguments.data is None:
        raise UserError("--suite offline needs --data: shards or a tree, as training reads them")
    index = open_index(arguments.data)
    selection = SelectionConfig(val_fraction=arguments.val_fraction)
    config = OfflineConfig(
        cameras=arguments.cameras, selection=selection, num_seeds=arguments.seeds
    )
    results = Results(out, {"data": index.fingerprint, "held out": arguments.val_fraction})
    encoders, untrained = _encoders(arguments.encoders, out)
    for name, source in encoders + untrained:
        encoder = load_model(source, arguments.device)
        weights = weights_fingerprint(encoder)
        if results.has(name, weights, next(iter(SCORES))):
            continue
        print(f"{name}: encoding and probing", flush=True)
        scores = offline_scores(encoder, index, config)
        about = {"suite": OFFLINE, "encoder": name, "source": source, "weights": weights}
        rows: list[dict[str, Any]] = [
            {
                **about,
                "task": score,
                "value": scores[score],
                "low": scores[f"{score}_low"],
                "high": scores[f"{score}_high"],
                "versions": versions(),
            }
            for score in SCORES
            if score in scores
        ]
        results.add(rows)
    return results.write_report(results.rows, percent=False)


def _encoders(
    arguments: list[str], out: Path
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, source) of the encoders, and of an untrained one for each kind of network among them.

    A kind is a network and its preprocessing.
    """
    from mcr.models.loading import load_model
    from mcr.models.untrained import write_untrained_like

    named = [_named(argument) for argument in arguments]
    if doubles := {name for name, _ in named if [n for n, _ in named].count(name) > 1}:
        raise UserError(f"two encoders are called {', '.join(sorted(doubles))}; write NAME=PATH")
    untrained: dict[tuple, tuple[str, str]] = {}
    for _, source in named:
        encoder = load_model(source)
        kind = (encoder.backbone, encoder.preprocessing)
        if kind in untrained:
            continue
        size = encoder.preprocessing.image_size
        path = out / "untrained" / f"{len(untrained)}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_untrained_like(path, source)
        untrained[kind] = (f"untrained {encoder.backbone}, {size} px", str(path))
    return named, list(untrained.values())


def _named(argument: str) -> tuple[str, str]:
    """ "NAME=PATH" or "PATH" -> (name, source)."""
    name, equals, source = argument.partition("=")
    return (name, source) if equals else (argument, argument)


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
