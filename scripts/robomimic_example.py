"""The whole robomimic example: demonstrations, policies, rollouts, a table of success rates.

    python scripts/robomimic_example.py --weights demo_output/encoder

Half an hour of one CPU core. --small shows in a few minutes that all of it runs; --everything also
trains and tries the policies that are otherwise only timed, which takes a GPU.
"""

import os
import sys
from pathlib import Path

from mcr.cli import Parser
from mcr.errors import command_line
from mcr.runs.ranges import WORKERS

ROOT = Path(__file__).parents[1]
SMALL = {
    "demonstrations": 4,
    "bc_epochs": 2,
    "rnn_epochs": 2,
    "steps": 5,
    "rollouts": 1,
    "timed_steps": 1,
}


@command_line
def main() -> None:
    arguments = make_parser().parse_strictly(sys.argv[1:])
    os.environ.setdefault("LP_NUM_THREADS", "1")  # of Mesa's software renderer
    if arguments.weights is None:
        print("no --weights: the only encoder is an untrained one")
    from mcr.robomimic.comparison import Scale, compare

    size = SMALL if arguments.small else {}
    scale = Scale(**size, everything=arguments.everything)
    compare(arguments.out, arguments.config, arguments.weights, scale, arguments.processes)


def make_parser() -> Parser:
    parser = Parser(
        description="Lift a cube in robosuite: behaviour cloning by robomimic on an encoder in the "
        "training loop, on its cached features, on an untrained encoder, on proprioception alone, "
        "and with robomimic's own ResNet-18 from scratch; each without and with an LSTM. "
        "Needs the extra robomimic.",
    )
    parser.add_argument("--weights", help="what mcr.load_model reads, as demo_output/encoder")
    parser.add_argument("--out", default="robomimic_output", help="folder; default: %(default)s")
    parser.add_argument(
        "--config",
        default=ROOT / "cfgs" / "robomimic_bc_mcr.json",
        help="what all policies share; default: cfgs/robomimic_bc_mcr.json",
    )
    parser.add_argument("--processes", type=WORKERS, default=2, help="runs at a time; default: 2")
    parser.add_argument(
        "--small", action="store_true", help="only to see that all of it runs: learns nothing"
    )
    parser.add_argument(
        "--everything",
        action="store_true",
        help="train and try encoders in the loop and BC-RNN from scratch too, not only time them",
    )
    return parser


if __name__ == "__main__":
    main()
