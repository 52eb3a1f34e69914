# What all scripts here do with a command: run it, or print it.
# shellcheck shell=bash

# run DRY_RUN COMMAND...: becomes the command, or prints it so that a shell can read it.
run() {
  local dry_run=$1
  shift
  if [[ -n $dry_run ]]; then
    echo "${*@Q}"
    return
  fi
  command -v "$1" > /dev/null || refuse "there is no $1 here; --dry-run prints the command."
  exec "$@"
}

# refuse SENTENCE: ends the script.
refuse() {
  echo "error: $1" >&2
  exit 2
}

# check_given MODULE NEEDED FLAGS...: ends the script unless --NEEDED is one of FLAGS.
check_given() {
  local module=$1 needed=$2 flag
  shift 2
  for flag; do
    [[ $flag =~ ^--?"$needed"(=|$) ]] && return
  done
  refuse "--$needed is needed among the flags of $module: else every process would do all of it."
}
