#!/usr/bin/env bash
# Download DROID as RLDS shards. Needs gsutil (`pip install gsutil`, or the Google Cloud SDK), no
# account. Run it again after an interruption: what is complete is not fetched again, and shards
# that were begun continue where they stopped.
set -euo pipefail

usage() {
    cat <<'END'
usage: bash scripts/download_droid.sh OUTPUT [--sample | --version VERSION] [--check]

  OUTPUT              folder to download to; the data set arrives in OUTPUT/droid/VERSION
  --sample            droid_100: 100 episodes, 2 GB, to OUTPUT/droid_100/1.0.0
  --version VERSION   1.0.1 (default: complete language, 1.7 TB) or 1.0.0
  --check             compare the CRC32C of every file that is there with the store's, which reads
                      all of them, and fetch again what is damaged

then: mcr inspect OUTPUT/droid/1.0.1 --verify
END
}

fail() {
    echo "error: $1" >&2
    exit 2
}

name=droid version=1.0.1 output="" check=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --sample) name=droid_100 version=1.0.0 ;;
        --check) check=yes ;;
        --version) [ $# -gt 1 ] || fail "--version needs a value"; version="$2"; shift ;;
        -*) fail "unknown option $1; see --help" ;;
        *) [ -z "$output" ] || fail "give one OUTPUT folder; see --help"; output="$1" ;;
    esac
    shift
done
[ -n "$output" ] || fail "give the OUTPUT folder; see --help"
[ "$version" = 1.0.0 ] || [ "$version" = 1.0.1 ] || fail "--version $version: give 1.0.0 or 1.0.1"
command -v gsutil >/dev/null || fail "gsutil is not there; install it with: pip install gsutil"

url="gs://gresearch/robotics/$name/$version"
target="$output/$name/$version"
mkdir -p "$target" || fail "$target cannot be made; choose a folder that you may write to"

gigabytes() { awk -v bytes="$1" 'BEGIN {printf "%.3f GB", bytes / 1e9}'; }

# Lines such as:   999  2024-01-31T12:00:00Z  gs://.../features.json
# and a last one:  TOTAL: 2050 objects, 1700000000000 bytes (1.55 TiB)
listing=$(gsutil ls -l "$url/**") || fail "$url cannot be listed, see above"
read -r objects bytes < <(awk '/^TOTAL:/ {print $2, $4}' <<<"$listing")
present=$(find "$target" -type f -exec wc -c {} + | awk '$2 != "total" {n += $1} END {printf "%.0f", n}')
free=$(($(df -Pk "$target" | awk 'NR == 2 {print $4}') * 1024))
if [ $((bytes - present)) -gt "$free" ]; then
    fail "$target: $(gigabytes $((bytes - present))) are needed but only $(gigabytes "$free") are free"
fi
echo "$url: $objects files, $(gigabytes "$bytes"), of which $(gigabytes "$present") are there"

# A file gets its name once it is complete and its CRC32C is right. cp -n skips what is there, cp -c and
# rsync -C go on with the next file after an error, rsync -c compares the CRC32C of what is there.
transfer=(cp -c -n -r "$url" "$output/$name/")
[ -z "$check" ] || transfer=(rsync -C -c -r "$url" "$target")
gsutil -m -o GSUtil:check_hashes=always "${transfer[@]}" ||
    fail "the download is not complete, see above; run the same command again to continue"

wrong=$(awk '$3 ~ /^gs:/ {print $1, $3}' <<<"$listing" | while read -r size object; do
    file="$target/${object#"$url/"}"
    [ -f "$file" ] && [ "$(wc -c <"$file")" -eq "$size" ] || echo "$file"
done)
[ -z "$wrong" ] ||
    fail "$(wc -l <<<"$wrong") files have not the store's size, $(head -n 1 <<<"$wrong") first; repair it with --check"
# Shards are called NAME-00007-of-02048; all 2048 must be there.
incomplete=$(find "$target" -name '*-of-*' | sed -E 's/-[0-9]+-of-0*/ /' | sort | uniq -c |
    awk '$1 != $3 {print $1 " of " $3}')
[ -z "$incomplete" ] || fail "$target: the store has only $incomplete shards"
echo "complete: $target, $objects files, $(gigabytes "$bytes"), in $SECONDS s"
