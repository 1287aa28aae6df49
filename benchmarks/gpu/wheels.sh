#!/usr/bin/env bash
# Fetches the packages that benchmarks/gpu.sh needs on a machine that has PyTorch and no registry:
#
#   bash benchmarks/gpu/wheels.sh FOLDER
#
# They are for Python 3.12 on x86-64 Linux, 2 MB in all. What such a machine has already is not among
# them: torch, torchvision, numpy, pandas, scipy, pillow, einops, tensorboard, safetensors,
# matplotlib, tqdm, pytest, timm, h5py.
set -euo pipefail
folder=${1:?usage: bash benchmarks/gpu/wheels.sh FOLDER}
mkdir -p "$folder"
platforms=()
for version in 2_28 2_27 2_24 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${version}_x86_64")
done
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
    --dest "$folder" \
    "hydra-core>=1.3.2,<1.4" "omegaconf>=2.2,<2.4" "simplejpeg>=1.7" "pyspng>=0.1.1" \
    "isal>=1.5" "google-crc32c>=1.5"
# Its author publishes no wheel of the version that Hydra wants; it is pure Python.
python3 -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" \
    "antlr4-python3-runtime==4.9.3"
ls -l "$folder"
