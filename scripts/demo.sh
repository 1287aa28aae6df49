#!/usr/bin/env bash
# The whole pipeline on the embedded sample data, end to end:   bash scripts/demo.sh [OUTPUT_FOLDER]
# RLDS shards -> PNG/pickle tree -> clean -> index -> train -> export -> features of a picture.
# After installation it takes a few minutes on 2 cores. Everything it writes is in OUTPUT_FOLDER.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

out="${1:-demo_output}"
sample=resources/sample_droid/1.0.0
if [ -e "$out" ]; then
    echo "error: $out exists; delete it, or give another folder: bash scripts/demo.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$out"
SECONDS=0
banner() { printf '\n=== %s\n' "$*"; }

banner "1/6  extract: shards -> a tree of PNGs and pickles"
python scripts/process_data_multicore.py "$sample" "$out/tree" --workers 2 \
    --cameras exterior_image_1_left exterior_image_2_left wrist_image_left

banner "2/6  clean: report, then move what is too short or incomplete to quarantine"
python scripts/delete_short_videos.py "$out/tree" --quarantine "$out/quarantine"

banner "3/6  train: index the tree, then three losses on a ResNet-18"
python -m mcr.training.train --config-name demo data.root="$out/tree" run_dir="$out/run" \
    data.cameras=[exterior_image_1_left,exterior_image_2_left,wrist_image_left]

banner "4/6  export: checkpoint -> an encoder to share"
checkpoint=$(ls "$out"/run/checkpoints/step_*.pt | tail -n 1)
python scripts/export.py "$checkpoint" "$out/encoder"
python scripts/verify.py "$out/encoder"

banner "5/6  use: mcr.load_model, one line"
picture=$(ls -d "$out"/tree/*/exterior_image_1_left/0.png | head -n 1)
python - "$out/encoder" "$picture" <<'PYTHON'
import sys
from PIL import Image
import mcr

encoder = mcr.load_model(sys.argv[1])
features = encoder(Image.open(sys.argv[2]))
print(f"features of {sys.argv[2]}: {tuple(features.shape)}, {features.flatten()[:4].tolist()} ...")
PYTHON

banner "6/6  report"
python scripts/report.py "$out/run"
python scripts/summarise_demo.py "$out" "$sample"
echo "took $((SECONDS / 60)) min $((SECONDS % 60)) s"
