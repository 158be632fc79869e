#!/usr/bin/env bash
# Builds, tests and measures everything that needs a GPU, in stages: `tools/gpu_check.sh --help`.
#
#   tools/gpu_check.sh                    all stages, about eight minutes on 16 cores
#   tools/gpu_check.sh --stages build,op  some of them
#   tools/gpu_check.sh --device cpu       a dry run at tiny sizes, where there is no GPU
#
# Packages that are missing are taken from wheels/, if `make wheels` has filled it; nothing is fetched here.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}

if compgen -G 'wheels/*.whl' > /dev/null; then
  if "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target output/wheels wheels/*.whl; then
    export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD/output/wheels"
  else
    echo "wheels/ is not for this Python: going on with what is installed" >&2
  fi
fi
exec "$PYTHON" -m tools.dev.gpu "$@"
