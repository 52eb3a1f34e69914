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
must be on storage that all nodes see, or in a bucket (gs://..., s3://...).

  --nodes=N          nodes; those of the allocation by default, or 1
  --gpus-per-node=N  GPUs of each; those of the allocation by default, or 8
  --batch            hand the job to sbatch as a script and return: it is requeued when SLURM preempts it
                     or its time is over, until it has ended; --dry-run prints the script
  --python=FILE      the Python there, python3 by default
  --env=NAME=VALUE   a variable there, any number of times
  --dry-run          print the command and do nothing
  any other          goes to srun, or to sbatch: --partition=NAME, --time=HOURS:MINUTES:SECONDS, --cpus-per-task=N
                     (srun takes one core otherwise, whatever sbatch was told), ...

A task takes the GPU of its number among those it sees, so it must see all of its node: give no
--gpus-per-task and no --gpu-bind. With --signal=TERM@300, here or, in a script, of sbatch itself,
training saves and ends 300 s before the time is over.
USAGE
}

nodes=${SLURM_NNODES:-1} gpus=${SLURM_GPUS_ON_NODE:-8} batch='' options=() of_tasks=()
option() {
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus-per-node=*) gpus=${1#*=} ;;
    --batch) batch=yes ;;
    *)
      options+=("$1")
      # srun inside the script does not take it from sbatch
      [[ $1 != --cpus-per-task=* ]] || of_tasks+=("$1")
      ;;
  esac
}

# script COMMAND...: prints a script for sbatch that runs it. SLURM tells the script, not the tasks,
# that the time ends, so that a scancel, which also sends SIGTERM to the tasks, requeues nothing.
script() {
  local each
  echo '#!/usr/bin/env bash'
  for each in "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" \
    --requeue --open-mode=append --signal=B:USR1@300 "${options[@]}"; do
    echo "#SBATCH $(words "$each")"
  done
  cat << SCRIPT
time_ends=''
# to the tasks alone; training saves and ends with 143. srun kills them on a SIGTERM of its own
trap 'time_ends=yes; scancel --signal=TERM "\$SLURM_JOB_ID"' USR1
$(words "$@") &
tasks=\$!
wait "\$tasks"
code=\$?
if [[ \$time_ends ]]; then
  wait "\$tasks" # which the signal interrupted
  code=\$?
  ((code != 143)) || exec scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
SCRIPT
}

read_job "$@"
for size in "--nodes=$nodes" "--gpus-per-node=$gpus"; do
  whole_number "$size" # that of the allocation may be something else
done
on_gpus
# all three numbers: srun would take what is lacking from the variables of an sbatch script
tasks=(env "${environment[@]}" srun --kill-on-bad-exit=1 --nodes="$nodes"
  --ntasks="$((nodes * gpus))" --ntasks-per-node="$gpus" --gpus-per-node="$gpus")
if [[ -z $batch ]]; then
  need srun
  run "${tasks[@]}" "${options[@]}" "${job[@]}"
elif [[ -n $dry_run ]]; then
  script "${tasks[@]}" "${of_tasks[@]}" "${job[@]}"
else
  need sbatch
  script "${tasks[@]}" "${of_tasks[@]}" "${job[@]}" | sbatch
fi
