#!/usr/bin/env bash
# A job on TPU slices or GPU nodes of a GKE cluster, by xpk; -h says how.
set -euo pipefail
# shellcheck source=launch/command.sh
. "$(dirname "$0")/command.sh"

usage() {
  cat << USAGE
Usage: launch/gke.sh train|sample --cluster=NAME --workload=NAME --tpu=TYPE [OPTIONS] -- FLAGS

Hands python -m sedd_jax.train (or .sample) FLAGS to a cluster that xpk has made, to run on every host
of its slices or nodes, and returns; the hosts find each other. What FLAGS name must be in a
bucket (gs://...), or on storage that all of them see (xpk's --storage).

  --tpu=TYPE        slices of this type, such as v5litepod-64; --num-slices=N of them, or
  --gpu=TYPE        nodes of this type, such as h100-mega-80gb-8; --num-nodes=N of them
  --python=FILE     the Python of the image, python3 by default
  --env=NAME=VALUE  a variable there, any number of times
  --dry-run         print the command and do nothing
  any other         goes to xpk workload create: --docker-image=IMAGE, --storage=NAME, --project=NAME,
                    --zone=ZONE, --max-restarts=N (each goes on where the one before ended), ...
USAGE
}

device=() others='' options=()
option() {
  case $1 in
    --tpu=?*) device=(--tpu-type="${1#*=}") ;;
    --gpu=?*)
      device=(--device-type="${1#*=}")
      # JAX finds TPU hosts by itself; those of GPUs are in variables that xpk sets on every node
      # shellcheck disable=SC2016 # there, not here
      others=' --coordinator=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT'
      # shellcheck disable=SC2016
      others+=' --num_processes=$NNODES --process_id=$NODE_RANK'
      ;;
    *) options+=("$1") ;;
  esac
}

read_job "$@"
((${#device[@]})) || refuse "--tpu=TYPE or --gpu=TYPE is needed; -h says more."
need xpk
[[ -z $others ]] || on_gpus
command="exec $(words env "${environment[@]}" "${job[@]}")"
# for GPUs xpk also copies the command between the double quotes of a string in YAML
[[ -z $others || $command != *[\"\\]* ]] ||
  refuse "xpk takes no quotes or backslashes in flags to GPU nodes."
run xpk workload create "${device[@]}" "${options[@]}" --command="$command$others"
