"""Pretrain an encoder, with one process per GPU; Hydra reads the options of the run.

    mcr train data.root=/data/droid/1.0.1
    mcr train --config-name demo data.root=/data/droid_tree
    mcr train --gpus 2 data.root=/data/droid/1.0.1

On one GPU, or none, the run happens in this process. On several, this process becomes torchrun,
which starts a training process per GPU and restarts processes that crash.
"""

from __future__ import annotations

import os
import sys

from mcr.errors import UserError, interruptible_imports
from mcr.runs.devices import count_gpus

HARMLESS = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}


def run(arguments: list[str]) -> None:
    """Train. $GPUS is the default of --gpus; $RESTARTS (3) limits how often processes restart."""
    processes = pop_gpus(arguments) or count_gpus()
    if processes > 1 and "RANK" not in os.environ and not HARMLESS & {*arguments}:
        check_before(processes, arguments)
        become_torchrun(processes, arguments)
    with interruptible_imports():
        from mcr.training.train import main

    sys.argv = ["mcr train", *arguments]  # where Hydra looks for them
    main()


def check_before(processes: int, arguments: list[str]) -> None:
    """Raise UserError for options that cannot work, which each process would report by itself."""
    with interruptible_imports():
        from mcr.training.train import check_options

    check_options(arguments, processes)


def pop_gpus(arguments: list[str]) -> int | None:
    """Remove `--gpus N` or `--gpus=N` from the arguments; return N, else $GPUS, else None."""
    text = os.environ.get("GPUS", "")
    for place, argument in enumerate(arguments):
        if argument == "--gpus":
            text = "".join(arguments[place + 1 : place + 2]) or "(nothing)"
            del arguments[place : place + 2]
            break
        if argument.startswith("--gpus="):
            text = arguments.pop(place).partition("=")[2]
            break
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--gpus {text}: give a number of GPUs, 1 or more")
    return int(text)


def become_torchrun(processes: int, arguments: list[str]) -> None:
    """Replace this process by torchrun with that many training processes."""
    # Restarted processes may otherwise look for the addresses of dead ones (pytorch issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(processes)]
    launcher += ["--max-restarts", os.environ.get("RESTARTS", "3")]
    command = [sys.executable, *launcher, "-m", "mcr.cli", "train", *arguments]
    os.execv(sys.executable, command)
