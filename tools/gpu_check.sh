#!/usr/bin/env bash
# Builds, tests and measures everything that needs a GPU, and writes what came out to a Markdown file.
#
#   tools/gpu_check.sh [OUTPUT_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-output/gpu_check}
PYTHON=${PYTHON:-python}
mkdir -p "$OUT"

"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "there is no GPU here" >&2; exit 2; }
(cd models/ops && "$PYTHON" setup.py --quiet build_ext --inplace)
"$PYTHON" tools/doctor.py | tee "$OUT/doctor.txt"
"$PYTHON" -m pytest tests/test_ops.py | tee "$OUT/tests.txt"
if command -v compute-sanitizer > /dev/null; then
  compute-sanitizer --error-exitcode 1 "$PYTHON" -m pytest tests/test_ops.py -k gpu | tee "$OUT/sanitizer.txt"
fi
"$PYTHON" tools/benchmark_ops.py --devices cuda --repeats 50 --out "$OUT/ops.md"
echo "written: $OUT"
