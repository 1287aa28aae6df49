#!/usr/bin/env bash
# Trains an encoder:   bash scripts/train_mcr.sh [--gpus N] [--config-name mcr|paper|demo] data.root=PATH [key=value ...]
#
#   bash scripts/train_mcr.sh data.root=/data/droid/1.0.1                    the real recipe, from shards
#   bash scripts/train_mcr.sh data.root=/data/droid_tree batch_size=64       from a PNG tree
#   bash scripts/train_mcr.sh --config-name paper data.root=...              the paper's recipe
#   bash scripts/train_mcr.sh --gpus 2 data.root=...                         on two of the GPUs
#   bash scripts/train_mcr.sh --help                                         everything that can be set
#
# Uses all GPUs of this machine, a process each; --gpus N (or GPUS=N) uses N of them, --gpus 1 the
# first. batch_size is that of all together. The same command again continues an interrupted run
# (resume=auto), with any number of GPUs; crashed processes are restarted from the last checkpoint, up
# to RESTARTS times (3).
#
# Several machines: run on each of them, with the same HOST (one of theirs) and PORT,
#   TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 4 --nproc-per-node 8 --max-restarts 3 \
#       --rdzv-backend c10d --rdzv-id mcr --rdzv-endpoint HOST:PORT -m mcr.training.train data.root=...
# scripts/train_mcr.slurm does so under SLURM.
set -euo pipefail
called_from="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$called_from" # relative paths on the command line mean what the caller means

gpus="${GPUS:-}"
if [ "${1:-}" = --gpus ]; then
    gpus="${2:?"--gpus needs a number"}"
    shift 2
fi
if [ -z "$gpus" ] && command -v nvidia-smi >/dev/null; then
    gpus="$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)"
fi
if [ "${gpus:-0}" -le 1 ]; then
    exec python -m mcr.training.train "$@"
fi
# Without this, restarted processes may look for the dead ones' addresses (pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec python -m torch.distributed.run --standalone --nproc-per-node "$gpus" \
    --max-restarts "${RESTARTS:-3}" -m mcr.training.train "$@"
