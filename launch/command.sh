# What all scripts here do: read a job, refuse what would fail later, run its command or print it.
# shellcheck shell=bash

python=python3 dry_run='' environment=(PYTHONUNBUFFERED=1) job=()

# read_job train|sample [OPTIONS] -- FLAGS: sets job, the command of one process; the options that
# not all scripts have are read by the script's `option`, and told by its `usage`.
read_job() {
  local module="sedd_jax.${1-}" needed flag
  case ${1-} in
    train) needed=(--config --workdir) ;;
    sample) needed=(--input) ;;
    -h | --help) usage && exit ;;
    *) refuse "the first word is what to do, train or sample; -h says more." ;;
  esac
  shift
  while (($#)) && [[ $1 != -- ]]; do
    case $1 in
      -h | --help) usage && exit ;;
      --dry-run) dry_run=yes ;;
      --python=?*) python=${1#*=} ;;
      --env=?*=*) environment+=("${1#*=}") ;;
      *) option "$1" ;;
    esac
    shift
  done
  (($# > 1)) || refuse "flags of $module are needed, after --."
  shift
  for flag in "${needed[@]}"; do
    given "$flag" "$@" || refuse "$flag is needed among the flags of $module, after --."
  done
  # shellcheck disable=SC2034 # the scripts run it
  job=("$python" -m "$module" "$@")
}

# given FLAG FLAGS...: whether FLAG is one of FLAGS.
given() {
  local name=${1#--} flag
  shift
  for flag; do
    [[ $flag =~ ^--?"$name"(=|$) ]] && return
  done
  return 1
}

# on_gpus: adds to the environment what GPUs gain from; what is set already wins, since the last of
# two flags or variables counts.
on_gpus() {
  environment=(
    # products go on while GPUs exchange weights and gradients; off by default (jaxlib 0.10)
    "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
    # of the memory, where JAX takes 0.75 by default; CUDA and NCCL need some of the rest
    "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
    "${environment[@]}"
  )
}

# run COMMAND...: becomes the command, or prints it so that a shell can read it.
run() {
  if [[ -n $dry_run ]]; then
    words "$@"
  else
    exec "$@"
  fi
}

# need PROGRAM: ends the script where there is none, unless it only prints.
need() {
  [[ -n $dry_run ]] || command -v "$1" > /dev/null ||
    refuse "there is no $1 here; --dry-run prints the command."
}

# words WORD...: prints one line that a shell reads as these words.
words() {
  local word line=()
  for word; do
    [[ $word =~ ^[[:alnum:]_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=("$word")
  done
  printf '%s\n' "${line[*]}"
}

# whole_number OPTION=N: ends the script unless N is one, and at least 1.
whole_number() {
  [[ $1 =~ ^[^=]+=[1-9][0-9]*$ ]] || refuse "$1 must be a whole number, at least 1."
}

# refuse SENTENCE: ends the script.
refuse() {
  echo "error: $1" >&2
  exit 2
}
