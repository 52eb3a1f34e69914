#!/usr/bin/env bash
# A job on all hosts of TPU slices, by gcloud; -h says how.
set -euo pipefail
# shellcheck source=launch/command.sh
. "$(dirname "$0")/command.sh"

usage() {
  cat << USAGE
Usage: launch/tpu.sh train|sample --tpu=NAME [OPTIONS] -- FLAGS

Runs python -m sedd_jax.train (or .sample) FLAGS on every host of a TPU VM slice, or of several; the
hosts find each other. What FLAGS name must be in a bucket (gs://...), or on storage that all
of them see.

  --tpu=NAME        the slice, or
  --queued=NAME     the queued resource, with all of its slices (at most 64 hosts in all: gcloud
                    starts no more at a time); give training --config.mesh.slice=SLICES
  --folder=FOLDER   of this project on every host, from the home folder there; sedd_jax by default
  --python=FILE     the Python there, from that folder, such as .venv/bin/python; python3 by default
  --env=NAME=VALUE  a variable there, any number of times
  --dry-run         print the command and do nothing
  any other         goes to gcloud's ssh: --zone=ZONE, --project=NAME, --tunnel-through-iap, ...
USAGE
}

target=() folder=sedd_jax options=()
option() {
  case $1 in
    --tpu=?*) target=(tpu-vm ssh "${1#*=}") ;;
    --queued=?*) target=(queued-resources ssh "${1#*=}" --node=all) ;;
    --folder=?*) folder=${1#*=} ;;
    *) options+=("$1") ;;
  esac
}

read_job "$@"
((${#target[@]})) || refuse "--tpu=NAME or --queued=NAME is needed; -h says more."
need gcloud
run gcloud compute tpus "${target[@]}" --worker=all "${options[@]}" \
  --command="cd $(words "$folder") && exec $(words env "${environment[@]}" "${job[@]}")"
