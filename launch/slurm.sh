# Runs a module on the GPUs of several nodes under SLURM; read by the scripts that name the module.
# shellcheck shell=bash

slurm_usage() {
  cat <<USAGE
Usage: launch/$(basename "$0") [OPTIONS] -- FLAGS

Runs python -m $1 FLAGS under SLURM, one task for each GPU; the tasks find each other. From a
login node, or in a script of sbatch. srun reads SLURM_PARTITION, SLURM_ACCOUNT and SLURM_TIMELIMIT.

  --nodes=N      nodes, 1 by default
  --gpus=N       GPUs of each node, 8 by default
  --python=FILE  the Python there, python3 by default
  --dry-run      print the command and do nothing
USAGE
}

# on_slurm MODULE NEEDED [OPTIONS] -- FLAGS, among which is --NEEDED
on_slurm() {
  local module=$1 needed=$2 nodes=1 gpus=8 python=python3 dry_run=''
  shift 2
  while (($#)) && [[ $1 != -- ]]; do
    case $1 in
      -h | --help) slurm_usage "$module" && return ;;
      --dry-run) dry_run=yes ;;
      --nodes=?*) nodes=${1#*=} ;;
      --gpus=?*) gpus=${1#*=} ;;
      --python=?*) python=${1#*=} ;;
      *) refuse "$1 is no option of this script; flags of $module come after --." ;;
    esac
    shift
  done
  [[ $nodes =~ ^[1-9][0-9]*$ ]] || refuse "--nodes=$nodes must be a whole number, at least 1."
  [[ $gpus =~ ^[1-9][0-9]*$ ]] || refuse "--gpus=$gpus must be a whole number, at least 1."
  (($# > 1)) || refuse "flags of $module are needed, after --."
  shift
  check_given "$module" "$needed" "$@"
  export PYTHONUNBUFFERED=1
  run "$dry_run" srun --kill-on-bad-exit=1 --nodes="$nodes" --ntasks-per-node="$gpus" \
    --gpus-per-node="$gpus" "$python" -m "$module" "$@"
}
