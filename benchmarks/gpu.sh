#!/usr/bin/env bash
# Proves and measures on a GPU whatever a CPU cannot show:
#
#   MCR_WHEELS=FOLDER bash benchmarks/gpu.sh OUT [--minutes 9] [--stages "right fast fed real"]
#   bash benchmarks/gpu.sh OUT --stages "right fast" [--tests EXPRESSION] [--rows REGEX]
#   bash benchmarks/gpu.sh OUT --rehearse
#
# The stages run in order of worth. Each has its share of the time that is left, and writes
# OUT/STAGE.log and OUT/STAGE.json as it goes, so that a run that is stopped leaves what it had done:
#   right   the tests marked `gpu`, and a policy's training step (benchmarks/frozen_bc.py)
#   fast    images per second of the training step, and its heaviest kernels (benchmarks/train_step.py)
#   fed     what the loader delivers to the GPU, and decoding on the GPU beside it
#   real    a pretraining run from random weights on the sample data
# On request, with data that was carried here (see benchmarks/gpu/small_data.py):
#   study   which recipe gives better features (benchmarks/study.py):
#           bash benchmarks/gpu.sh OUT --stages study --data FOLDER [--bring]
#               [--study "--candidates base paper --seeds 0 1 2 -- steps=2000"]
# To measure only what is missing: --tests chooses tests as pytest's -k does, and leaves out the
# policy; --rows chooses rows of benchmarks/train_step.py, whose option --list names them.
#
# OUT/gpu.md puts the figures together. It can be made again: python benchmarks/gpu/report.py OUT
#
# No network is needed. A machine that has PyTorch and no package registry finds the other packages as
# wheels in the folder MCR_WHEELS; bash benchmarks/gpu/wheels.sh FOLDER fetches them beforehand.
# --rehearse runs the same stages with tiny sizes on a machine without a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,28s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
out="" minutes=9 stages="right fast fed real" rehearse="" tests="" rows="" data="" study="" bring=""
while [ $# -gt 0 ]; do
    case "$1" in
        --minutes) minutes=$2; shift 2 ;;
        --stages) stages=$2; shift 2 ;;
        --tests) tests=$2; shift 2 ;;
        --rows) rows=$2; shift 2 ;;
        --data) data=$(cd "$2" && pwd); shift 2 ;;
        --study) study=$2; shift 2 ;;
        --bring) bring=--bring; shift ;;
        --rehearse) rehearse=--rehearse; shift ;;
        -h | --help) usage; exit 0 ;;
        -*) echo "error: unknown option $1; see bash benchmarks/gpu.sh --help" >&2; exit 2 ;;
        *) out=$1; shift ;;
    esac
done
[ -n "$out" ] || { usage >&2; exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)

python=python3
command -v python >/dev/null && [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && python=python
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
if [ -n "${MCR_WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --target "$site" "$MCR_WHEELS"/*.whl
    PYTHONPATH=$PWD:$site
fi
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total \
    --format=csv,noheader || echo "no GPU: what needs one is skipped"

# stage -> its share of the time, and its command as the array `command`
share() { case "$1" in right) echo 28 ;; fast) echo 34 ;; fed) echo 14 ;; real) echo 24 ;; study) echo 100 ;; esac; }
set_command() {
    case "$1" in
        right) command=(benchmarks/gpu/right.py ${tests:+--tests "$tests"}) ;;
        fast) command=(benchmarks/train_step.py --profile ${rows:+--rows "$rows"}) ;;
        fed) command=(benchmarks/gpu/fed.py) ;;
        real) command=(benchmarks/gpu/real.py) ;;
        study) command=(benchmarks/gpu/recipes.py --data "$data" --study "$study" $bring) ;;
        *) echo "error: no stage $1; stages: right fast fed real study" >&2; exit 2 ;;
    esac
    command+=($rehearse --json "$out/$1.json")
}

failed="" shares=0 started=$SECONDS
for stage in $stages; do
    set_command "$stage"
    shares=$((shares + $(share "$stage")))
done
for stage in $stages; do
    began=$SECONDS
    left=$((minutes * 60 - (began - started)))
    budget=$((left * $(share "$stage") / shares))
    shares=$((shares - $(share "$stage")))
    # A stage plans for its budget; the limit is for one that hangs or a machine that is busy.
    limit=$((budget * 11 / 10))
    if [ -n "$rehearse" ]; then
        budget=$((minutes * 60 * $(share "$stage") / 100))
        limit=$((budget * 3))
    fi
    [ "$limit" -gt 0 ] || { echo "no time is left for $stage"; failed="$failed $stage"; continue; }
    set_command "$stage"
    echo "=== $stage, at most $limit s"
    timeout --kill-after=5 "$limit" "$python" "${command[@]}" --budget $((budget * 85 / 100)) \
        2>&1 | tee "$out/$stage.log" || failed="$failed $stage"
    echo "--- $stage took $((SECONDS - began)) s"
done
"$python" benchmarks/gpu/report.py "$out"
[ -z "$failed" ] || { echo "error: these stages failed or ran out of time:$failed" >&2; exit 1; }
