#!/usr/bin/env bash
# Trains on one machine or several, one process per GPU.
#
#   GPUS_PER_NODE=8 ./tools/run_dist_launch.sh 8 config/deformable_detr/deformable_detr_r50.py [arguments of main.py]
#   MASTER_ADDR=IP_OF_NODE_0 NODE_RANK=0 GPUS_PER_NODE=8 ./tools/run_dist_launch.sh 16 config/... (the same on each node)
#   GPUS_PER_NODE=8 ./tools/run_dist_launch.sh 8 python main.py -c config/... --options ...
#
# The first argument is the number of processes on all machines together.
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
PROCESSES=$1
shift
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
if [ "$PROCESSES" -lt "$GPUS_PER_NODE" ]; then
  GPUS_PER_NODE=$PROCESSES
fi
if [ $((PROCESSES % GPUS_PER_NODE)) -ne 0 ]; then
  echo "$PROCESSES processes do not divide over machines of GPUS_PER_NODE=$GPUS_PER_NODE" >&2
  exit 2
fi
if [[ "$1" == python* ]]; then
  shift  # the launcher starts Python itself
else
  CONFIG=$1
  shift
  set -- main.py -c "$CONFIG" "$@"
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes $((PROCESSES / GPUS_PER_NODE)) \
  --nproc_per_node "$GPUS_PER_NODE" \
  --node_rank "${NODE_RANK:-0}" \
  --master_addr "${MASTER_ADDR:-127.0.0.1}" \
  --master_port "${MASTER_PORT:-29500}" \
  "$@"
