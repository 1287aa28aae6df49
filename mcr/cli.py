"""The command line: `mcr COMMAND`, and the scripts of the same commands.

Each command is a module of `mcr/commands/`, whose docstring is the text of `mcr COMMAND --help`.
The module is imported when its command is used, so that `mcr --help` imports no torch. Most
commands define `add_arguments(parser)` and `run(options)`, which returns the exit code, or None for
0. A command whose options Hydra reads (`train`, `bc`) defines only `run(arguments)`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import mcr
from mcr.errors import (
    UserError,
    import_extra,
    interruptible_imports,
    nearest,
    plain_errors,
    require_choice,
)

GROUPS = {
    "data": {
        "inspect": "describe a data set: a report and a picture",
        "extract": "convert RLDS shards to a tree of PNGs and pickles",
        "clean": "report the bad episodes of a tree; move or delete them if told to",
        "index": "build the index of a data set before training does",
    },
    "pretraining": {
        "train": "pretrain an encoder, on one GPU or several",
        "report": "summarise a training run on one page",
        "compare": "compare training runs in a table and a picture",
    },
    "encoders": {
        "export": "convert a checkpoint to an encoder to share",
        "verify": "check whether an encoder is what it claims to be",
        "features": "compute an encoder's features of a data set",
    },
    "policies and evaluation": {
        "record": "record a scripted expert's demonstrations in simulation",
        "bc": "train a policy by behaviour cloning",
        "evaluate": "compare encoders by success rates in simulation, or on recorded data",
        "centricity": "measure whether encoders look at what is manipulated",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}


def main(command: str = "") -> NoReturn:
    """Run `mcr`, or, as a script that stands for one command, that command; then exit.

    The exit code is 0 for success, 1 for a negative result, and 2 for bad input, which is reported
    in one sentence.
    """
    arguments = sys.argv[1:]
    with plain_errors():
        if command:
            code = run_command(command, arguments, Path(sys.argv[0]).name)
        else:
            code = run(arguments)
        sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run `mcr` with these arguments and return the exit code."""
    parser = Parser(prog="mcr", usage="mcr COMMAND ...", add_help=False)
    parser.add_argument("command", nargs="?", default="")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--print-completion", metavar="SHELL")
    if arguments and not arguments[0].startswith("-"):
        name = arguments[0]
        if name not in COMMANDS:
            raise UserError(f"mcr has no command {name!r}{nearest(name, COMMANDS)}")
        return run_command(name, arguments[1:], f"mcr {name}")
    options = parser.parse_strictly(arguments)
    if options.version:
        print(mcr.__version__)
    elif options.print_completion:
        print(completion(options.print_completion))
    else:
        print(overview())
    return 0 if arguments else 2


def run_command(name: str, arguments: Sequence[str], prog: str) -> int:
    """Run one command and return its exit code. `prog` is what the user typed to call it."""
    module = import_command(name)
    if hasattr(module, "add_arguments"):
        return module.run(parse(module, arguments, prog)) or 0
    return module.run(list(arguments)) or 0


def parse(command: ModuleType, arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """A command's options, from its arguments."""
    parser = Parser(
        prog=prog,
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser.parse_strictly(arguments)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}{'' if message[-1] == '?' else ';'} see {self.prog} --help")

    def parse_strictly(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments; for an unknown one raise UserError with the nearest option."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            name = unknown[0].partition("=")[0]
            if name.startswith("-"):
                raise UserError(f"{self.prog} has no option {name}{nearest(name, known)}")
            raise UserError(f"{name!r} is one argument too many; see {self.prog} --help")
        return options


def overview() -> str:
    """The text of `mcr --help`."""
    lines = [
        "usage: mcr COMMAND ...",
        "",
        "Pretrain, share and evaluate visual encoders for robots.",
    ]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:12}{summary}" for name, summary in commands.items()]
    lines += ["", "mcr COMMAND --help           the options of a command"]
    lines += ["mcr --print-completion bash  the shell's completion of all of them; also zsh, tcsh"]
    lines += ["mcr --version                the version of the package"]
    return "\n".join(lines)


def completion(shell: str) -> str:
    """The script that makes a shell complete `mcr`'s commands, options and file names."""
    shtab = import_extra("shtab", "completion")
    require_choice("--print-completion", shell, shtab.SUPPORTED_SHELLS)
    parser = argparse.ArgumentParser(prog="mcr")
    subparsers = parser.add_subparsers()
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary)
        module = import_command(name)
        if hasattr(module, "add_arguments"):
            module.add_arguments(subparser)
        else:
            subparser.add_argument("override", nargs="*", metavar="KEY=VALUE")
        for action in subparser._actions:
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def import_command(name: str) -> ModuleType:
    """The module of a command."""
    with interruptible_imports():
        return importlib.import_module(f"mcr.commands.{name}")


if __name__ == "__main__":
    main()
