#!/usr/bin/env bash
# Trains an encoder; `mcr train` by the name of its script:
#   bash scripts/train_mcr.sh [--gpus N] [--config-name mcr|paper|demo] data.root=PATH [key=value ...]
#
#   bash scripts/train_mcr.sh data.root=/data/droid/1.0.1                    the real recipe, from shards
#   bash scripts/train_mcr.sh data.root=/data/droid_tree batch_size=64       from a PNG tree
#   bash scripts/train_mcr.sh --config-name paper data.root=...              the paper's recipe
#   bash scripts/train_mcr.sh --gpus 2 data.root=...                         on two of the GPUs
#   bash scripts/train_mcr.sh --help                                         everything that can be set
#
# It uses all GPUs of this machine, with a process for each; --gpus N (or GPUS=N) uses the first N.
# batch_size counts the clips of all GPUs together. The same command again continues an interrupted run
# (resume=auto), with any number of GPUs. Crashed processes are restarted from the last checkpoint, up
# to RESTARTS times (3).
#
# On several machines, run this on each of them, with the same HOST (one of theirs) and PORT:
#   TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 4 --nproc-per-node 8 --max-restarts 3 \
#       --rdzv-backend c10d --rdzv-id mcr --rdzv-endpoint HOST:PORT -m mcr.training.train data.root=...
# scripts/train_mcr.slurm does this under SLURM.
set -euo pipefail
called_from="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$called_from" # relative paths on the command line mean what the caller means

exec python -m mcr.cli train "$@"
