#!/bin/bash
# What one node of a training on several does; slurm-train.sh starts it on each, and so may anything else (ssh, mpirun, Kubernetes).
#
#   HEAD=10.0.0.1 NODES=2 NODE=0 PROCESSES=8 bash flows/deploy/launch-node.sh --device cuda --config ... --out ... --source ...
set -euo pipefail

NODES="${NODES:-${SLURM_JOB_NUM_NODES:?how many nodes}}"
NODE="${NODE:-${SLURM_NODEID:?the number of this node, from 0}}"
: "${HEAD:?name or address of node 0}" "${PROCESSES:?processes on this node, one a GPU}"
PORT="${PORT:-29500}"
CHECKOUT="${CHECKOUT:-$PWD}"
PYTHON="${VENV:-$CHECKOUT/.venv}/bin/python"

cd "$CHECKOUT"
exec "$PYTHON" -m torch.distributed.run \
    --nnodes "$NODES" --nproc-per-node "$PROCESSES" --node-rank "$NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id "${SLURM_JOB_ID:-glip}" --max-restarts "${RESTARTS:-3}" \
    -m pipeline.cli.train "$@"
