#!/usr/bin/env bash
# A job of several processes on the CPUs of this machine; -h says how.
set -euo pipefail
here="$(dirname "$0")"
# shellcheck source=launch/command.sh
. "$here/command.sh"

usage() {
  cat << USAGE
Usage: launch/local.sh train|sample [OPTIONS] -- FLAGS

Runs python -m sedd_jax.train (or .sample) FLAGS in several processes on this machine, as several hosts
would: to try a mesh or a job before it costs anything. Each line of output begins with the number
of its process. When one process fails, or on Ctrl-C, all end; the exit code is that of the first
failure.

  --processes=N     processes, 2 by default
  --devices=N       CPU devices of each, 1 by default
  --python=FILE     the Python, python3 by default
  --env=NAME=VALUE  a variable of theirs, any number of times
  --dry-run         print the command and do nothing
USAGE
}

processes=2 devices=1
option() {
  case $1 in
    --processes=*) whole_number "$1" && processes=${1#*=} ;;
    --devices=*) whole_number "$1" && devices=${1#*=} ;;
    *) refuse "$1 is no option of this script; flags of the job come after --." ;;
  esac
}

read_job "$@"
need "$python"
run env "${environment[@]}" JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices" \
  "$python" "$here/together.py" "$processes" "${job[@]}"
