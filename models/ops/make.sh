#!/usr/bin/env sh
# Builds the kernels in place: what `make ops` does, from this folder.
set -e
cd "$(dirname "$0")"
"${PYTHON:-python}" setup.py build_ext --inplace
