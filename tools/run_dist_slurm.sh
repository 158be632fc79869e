#!/usr/bin/env bash
# Trains on a slurm cluster, one task per GPU.
#
#   GPUS_PER_NODE=8 ./tools/run_dist_slurm.sh PARTITION JOB_NAME 16 config/deformable_detr/deformable_detr_r50.py [arguments of main.py]
#
# The third argument is the number of GPUs on all nodes together. SRUN_ARGS holds further arguments of srun.
set -euo pipefail

if [ $# -lt 4 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
PARTITION=$1
JOB_NAME=$2
GPUS=$3
CONFIG=$4
shift 4
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
if [ "$GPUS" -lt "$GPUS_PER_NODE" ]; then
  GPUS_PER_NODE=$GPUS
fi

# Inside the job, every task finds its rank in SLURM_PROCID; all of them need the first node's name.
# shellcheck disable=SC2016,SC2086
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" \
  --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  bash -c 'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=${MASTER_PORT:-29500}
           exec "${PYTHON:-python}" main.py -c "$@"' run "$CONFIG" "$@"
