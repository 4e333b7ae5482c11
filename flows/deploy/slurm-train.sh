#!/bin/bash
# One training on several nodes: a launcher a node, a process a GPU, torchrun's c10d rendezvous on the first node.
#
#   sbatch --nodes=4 --gpus-per-node=8 flows/deploy/slurm-train.sh --device cuda --config student.json \
#       --init runs/big/checkpoints/teacher/final --out runs/big/checkpoints/student-1 \
#       --source 'grounding=runs/big/train/grounding-*.tar' --source 'pseudo=runs/big/pseudo/round-1/pseudo-*.tar'
#
# Arguments are those of `python -m pipeline.cli.train`; all nodes must see the same folders. A job that was ended
# goes on from its last checkpoint when it is submitted again (Slurm does so itself after a node's failure: --requeue).
#SBATCH --job-name=glip-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

CHECKOUT="${CHECKOUT:-${SLURM_SUBMIT_DIR:-$PWD}}"
VENV="${VENV:-$CHECKOUT/.venv}"
PROCESSES="${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}"      # of each node
PORT="${PORT:-29500}"
HEAD="${HEAD:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)}"
export HEAD PORT PROCESSES VENV CHECKOUT

cd "$CHECKOUT"
# said again: since Slurm 22.05 srun does not take it over from the job, and all processes of a node would share one core
exec srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} --kill-on-bad-exit=1 bash flows/deploy/launch-node.sh "$@"
