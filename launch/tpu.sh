# Runs a module on every host of a TPU VM slice; read by the scripts that name the module.
# shellcheck shell=bash

tpu_usage() {
  cat <<USAGE
Usage: launch/$(basename "$0") --tpu=NAME --zone=ZONE [OPTIONS] -- FLAGS

Runs python -m $1 FLAGS on every host of a TPU VM slice; the hosts find each other.

  --tpu=NAME       the slice
  --zone=ZONE      where it is
  --project=NAME   of Google Cloud; that of gcloud's settings by default
  --folder=FOLDER  of this project on every host, sedd_jax by default
  --python=FILE    the Python there, python3 by default
  --dry-run        print the command and do nothing
USAGE
}

# on_tpu MODULE NEEDED [OPTIONS] -- FLAGS, among which is --NEEDED
on_tpu() {
  local module=$1 needed=$2 tpu='' zone='' project=() folder=sedd_jax python=python3 dry_run=''
  shift 2
  while (($#)) && [[ $1 != -- ]]; do
    case $1 in
      -h | --help) tpu_usage "$module" && return ;;
      --dry-run) dry_run=yes ;;
      --tpu=?*) tpu=${1#*=} ;;
      --zone=?*) zone=${1#*=} ;;
      --project=?*) project=("$1") ;;
      --folder=?*) folder=${1#*=} ;;
      --python=?*) python=${1#*=} ;;
      *) refuse "$1 is no option of this script; flags of $module come after --." ;;
    esac
    shift
  done
  [[ -n $tpu && -n $zone ]] || refuse "--tpu=NAME and --zone=ZONE are needed; -h says more."
  (($# > 1)) || refuse "flags of $module are needed, after --."
  shift
  check_given "$module" "$needed" "$@"
  local command
  command="cd $(printf %q "$folder") && PYTHONUNBUFFERED=1 exec$(printf ' %q' "$python" -m "$module" "$@")"
  run "$dry_run" gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" "${project[@]}" \
    --worker=all --command="$command"
}
