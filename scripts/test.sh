#!/usr/bin/env bash
# Sets itself up and runs the tests:   bash scripts/test.sh [pytest arguments]
# Those of robomimic alone, for which its extra is installed too:   bash scripts/test.sh robomimic
# Those of the simulators alone, with theirs:                        bash scripts/test.sh simulators
# Those of LeRobot alone, in an environment of its own, .venv-lerobot: bash scripts/test.sh lerobot
# Those of the download alone, with gsutil and an emulator of the store in .venv-download:
#                                                                    bash scripts/test.sh download
# Only the whole suite runs ruff and mypy; what mypy finds depends on the versions that are installed.
set -euo pipefail
extras=dev
if [ "${1:-}" = robomimic ]; then
    extras=dev,robomimic
    shift
    set -- tests/robomimic --slow "$@"
elif [ "${1:-}" = simulators ]; then
    extras=dev,metaworld,robosuite
    shift
    set -- tests/simulation tests/evaluation/test_success_rates.py "$@"
elif [ "${1:-}" = lerobot ]; then
    extras=dev,lerobot-policies
    venv=.venv-lerobot
    shift
    set -- tests/lerobot "$@"
elif [ "${1:-}" = download ]; then
    tools=.venv-download
    shift
    set -- tests/download "$@"
else
    whole=yes
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ -n "${whole:-}" ]; then
    ruff check .
    ruff format --check .
    mypy
fi
if [ -n "${tools:-}" ]; then
    if [ ! -x "$tools/bin/gcp-storage-emulator" ]; then
        python -m venv "$tools"
        "$tools/bin/pip" install --quiet gsutil==5.38 gcp-storage-emulator==2026.7.19
    fi
    export MCR_DOWNLOAD_TOOLS="$PWD/$tools/bin"
fi
# Workers get whole files, the long ones first: the order of tests/conftest.py is kept as it is.
# What fixtures share stays until the end of a run, 5 GB, and pytest keeps that of three runs. To keep
# it, name a folder: --basetemp FOLDER
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
OMP_NUM_THREADS=1 python -m pytest --basetemp "$scratch" \
    --numprocesses "${MCR_TEST_PROCESSES:-auto}" --dist loadfile --no-loadscope-reorder "$@"
