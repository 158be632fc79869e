#!/usr/bin/env bash
# Builds, tests and measures everything that needs a GPU, and writes what came out to REPORT.md in a folder.
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
"$PYTHON" tools/benchmark_ops.py --devices cuda --repeats 50 --classic --out "$OUT/ops.md"
"$PYTHON" tools/zoo.py --latency --device cuda --out "$OUT"
{
  echo "# $("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name())')"
  printf '\n## What was found\n\n```\n'
  cat "$OUT/doctor.txt"
  printf '```\n\n## Tests\n\n```\n'
  tail -n 3 "$OUT/tests.txt"
  printf '```\n\n## The op\n\n'
  cat "$OUT/ops.md"
  printf '\n## Models\n\n'
  cat "$OUT/speed.md"
} > "$OUT/REPORT.md"
echo "written: $OUT/REPORT.md"
