#!/usr/bin/env bash
# Trains an encoder:   bash scripts/train_mcr.sh [--config-name mcr|paper|demo] data.root=PATH [key=value ...]
#
#   bash scripts/train_mcr.sh data.root=/data/droid/1.0.1                    the real recipe, from shards
#   bash scripts/train_mcr.sh data.root=/data/droid_tree batch_size=64       from a PNG tree
#   bash scripts/train_mcr.sh --config-name paper data.root=...              the paper's recipe
#   bash scripts/train_mcr.sh --help                                         everything that can be set
#
# The same command again continues an interrupted run (resume=auto).
set -euo pipefail
called_from="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$called_from" # relative paths on the command line mean what the caller means
exec python -m mcr.training.train "$@"
