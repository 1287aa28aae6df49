#!/usr/bin/env bash
# Sets itself up and runs the tests:   bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ruff check .
ruff format --check .
mypy
OMP_NUM_THREADS=1 python -m pytest --numprocesses "${MCR_TEST_PROCESSES:-auto}" "$@"
