"""Train a robomimic policy on top of an encoder:

python scripts/train_robomimic.py --config cfgs/robomimic_bc_mcr.json --dataset lift.hdf5
"""

import sys

from mcr.cli import Parser
from mcr.errors import command_line


@command_line
def main() -> None:
    options = vars(make_parser().parse_strictly(sys.argv[1:]))
    from mcr.robomimic.training import adjust, read_config, read_progress, train

    run = train(adjust(read_config(options.pop("config")), **options))
    print(f"\nwritten: {run}")
    for epoch, share in read_progress(run).success.items():
        print(f"success rate after epoch {epoch}: {share:.0%}")


def make_parser() -> Parser:
    parser = Parser(
        description="Train a policy by robomimic, with the backbones of mcr: MCRConv, R3MConv, "
        "MVPConv, EncoderConv. Needs the extra robomimic."
    )
    parser.add_argument("--config", required=True, help="robomimic's JSON")
    parser.add_argument("--dataset", help="robomimic's HDF5; default: the config's train.data")
    parser.add_argument(
        "--weights", help="what mcr.load_model reads; default: the config's backbone_kwargs.weights"
    )
    parser.add_argument("--output", help="folder of runs; default: the config's train.output_dir")
    parser.add_argument("--name", help="of the run; default: the config's experiment.name")
    return parser


if __name__ == "__main__":
    main()
