#!/usr/bin/env bash
# A job on the GPUs of nodes under SLURM, by srun; -h says how.
set -euo pipefail
# shellcheck source=launch/command.sh
. "$(dirname "$0")/command.sh"

usage() {
  cat << USAGE
Usage: launch/slurm.sh train|sample [OPTIONS] -- FLAGS

Runs python -m sedd_jax.train (or .sample) FLAGS under SLURM, one task for each GPU; the tasks find each
other, and end when one of them does. From a login node, or in a script of sbatch. What FLAGS name
must be on storage that all nodes see.

  --nodes=N          nodes; those of the allocation by default, or 1
  --gpus-per-node=N  GPUs of each; those of the allocation by default, or 8
  --python=FILE      the Python there, python3 by default
  --env=NAME=VALUE   a variable there, any number of times
  --dry-run          print the command and do nothing
  any other          goes to srun: --partition=NAME, --time=HOURS:MINUTES:SECONDS, --cpus-per-task=N
                     (srun takes one core otherwise, whatever sbatch was told), ...

A task takes the GPU of its number among those it sees, so it must see all of its node: give no
--gpus-per-task and no --gpu-bind. With --signal=TERM@300, here or, in a script, of sbatch itself,
training saves and ends 300 s before the time is over.
USAGE
}

nodes=${SLURM_NNODES:-1} gpus=${SLURM_GPUS_ON_NODE:-8} options=()
option() {
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus-per-node=*) gpus=${1#*=} ;;
    *) options+=("$1") ;;
  esac
}

read_job "$@"
for size in "--nodes=$nodes" "--gpus-per-node=$gpus"; do
  whole_number "$size" # that of the allocation may be something else
done
on_gpus
need srun
# all three numbers: srun would take what is lacking from the variables of an sbatch script
run env "${environment[@]}" srun --kill-on-bad-exit=1 --nodes="$nodes" --ntasks="$((nodes * gpus))" \
  --ntasks-per-node="$gpus" --gpus-per-node="$gpus" "${options[@]}" "${job[@]}"
