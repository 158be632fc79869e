#!/usr/bin/env bash
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
# Trains on a slurm cluster, one task per GPU.
#
#   GPUS_PER_NODE=8 ./tools/run_dist_slurm.sh PARTITION JOB_NAME 16 config/deformable_detr/deformable_detr_r50.py [arguments of main.py]
#   GPUS_PER_NODE=8 sbatch -p PARTITION -J JOB_NAME --gres=gpu:8 -n 16 --ntasks-per-node=8 -t 4:00:00 \
#       tools/run_dist_slurm.sh PARTITION JOB_NAME 16 config/... (goes on by itself when its time is up)
#
# The third argument is the number of GPUs on all nodes together. SRUN_ARGS holds further arguments of srun.
# SIGNAL_SECONDS (180) before the time is up, training is asked to stop: it saves and leaves with status 75. A job of
# sbatch is then queued again; of another one, start the same command again.
set -euo pipefail

if [ $# -lt 4 ]; then
  sed -n '5,13s/^# \{0,1\}//p' "$0" >&2
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
STATUS=0
# shellcheck disable=SC2016,SC2086
srun --partition="$PARTITION" --job-name="$JOB_NAME" --signal="USR1@${SIGNAL_SECONDS:-180}" \
  --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  bash -c 'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=${MASTER_PORT:-29500}
           exec "${PYTHON:-python}" main.py -c "$@"' run "$CONFIG" "$@" || STATUS=$?

if [ "$STATUS" -eq 75 ]; then
  # A job that was cancelled is not running any more, and is not to come back.
  if [ -n "${SLURM_JOB_ID:-}" ] && [ "$(squeue --noheader --job "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    echo "saved; job $SLURM_JOB_ID is queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "saved; the same command goes on from there" >&2
  fi
fi
exit "$STATUS"
