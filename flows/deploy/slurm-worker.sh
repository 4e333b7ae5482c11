#!/bin/bash
# A Prefect worker on a Slurm node, which runs what is started from the dashboard or `prefect deployment run`.
#
#   export PREFECT_API_URL=http://SERVER:4200/api PREFECT_API_AUTH_STRING=USER:PASSWORD
#   sbatch --gpus=4 --export=ALL flows/deploy/slurm-worker.sh
#
# Secrets come by the environment that sbatch passes on, not by this file. Several of these share the work; a run that
# dies with its node goes on where it was when it is started again with the same `out`.
#SBATCH --job-name=glip-worker
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

: "${PREFECT_API_URL:?where the server answers, such as http://SERVER:4200/api}"
POOL="${POOL:-glip-self-train}"
LIMIT="${LIMIT:-1}"                     # runs at a time; a run's own processes use all GPUs of the node
CHECKOUT="${CHECKOUT:-${SLURM_SUBMIT_DIR:-$PWD}}"
VENV="${VENV:-$CHECKOUT/.venv}"

cd "$CHECKOUT"
export DO_NOT_TRACK=1 PREFECT_FLOWS_HEARTBEAT_FREQUENCY=60 PREFECT_HOME="${PREFECT_HOME:-${TMPDIR:-/tmp}/prefect-${SLURM_JOB_ID:-$$}}"
# Two minutes before the time is over Slurm sends TERM; the worker then ends its runs, and their children with them. It takes
# this shell's place: started in the background it would ignore the signal by which Prefect's launcher ends it.
exec "$VENV/bin/prefect" worker start --type process --pool "$POOL" --limit "$LIMIT" --name "slurm-${SLURM_JOB_ID:-$$}"
