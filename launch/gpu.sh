#!/usr/bin/env bash
# A job on all GPUs of this machine; -h says how.
set -euo pipefail
# shellcheck source=launch/command.sh
. "$(dirname "$0")/command.sh"

usage() {
  cat << USAGE
Usage: launch/gpu.sh train|sample [OPTIONS] -- FLAGS

Runs python -m sedd_jax.train (or .sample) FLAGS here: one process, which sees all GPUs, or those that
CUDA_VISIBLE_DEVICES names.

  --python=FILE     the Python, python3 by default
  --env=NAME=VALUE  a variable of its environment, any number of times
  --dry-run         print the command and do nothing
USAGE
}

option() {
  refuse "$1 is no option of this script; flags of the job come after --."
}

read_job "$@"
on_gpus
need "$python"
run env "${environment[@]}" "${job[@]}"
