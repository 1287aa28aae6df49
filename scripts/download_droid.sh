#!/usr/bin/env bash
# Download DROID as RLDS shards. Needs gsutil (`pip install gsutil`, or the Google Cloud SDK), no
# account. Run it again after an interruption: what is complete is not fetched again, and shards
# that were begun continue where they stopped.
set -euo pipefail

usage() {
    cat <<'END'
usage: bash scripts/download_droid.sh OUTPUT [--sample | --version VERSION]

  OUTPUT              folder to download to; the data set arrives in OUTPUT/droid/VERSION
  --sample            droid_100: 100 episodes, 2 GB, to OUTPUT/droid_100/1.0.0
  --version VERSION   1.0.1 (default: complete language, 1.7 TB) or 1.0.0

then: python scripts/process_data_multicore.py OUTPUT/droid/1.0.1 TREE
END
}

fail() {
    echo "error: $1" >&2
    exit 2
}

name=droid version=1.0.1 output=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --sample) name=droid_100 version=1.0.0 ;;
        --version) [ $# -gt 1 ] || fail "--version needs a value"; version="$2"; shift ;;
        -*) fail "unknown option $1; see --help" ;;
        *) [ -z "$output" ] || fail "give one OUTPUT folder; see --help"; output="$1" ;;
    esac
    shift
done
[ -n "$output" ] || fail "give the OUTPUT folder; see --help"
command -v gsutil >/dev/null || fail "gsutil is not there; install it with: pip install gsutil"

mkdir -p "$output/$name"
# -n: skip what is there. A file only gets its name once it is complete and its checksum right.
gsutil -m cp -n -r "gs://gresearch/robotics/$name/$version" "$output/$name/"
echo "downloaded to $output/$name/$version"
