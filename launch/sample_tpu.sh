#!/usr/bin/env bash
# A sampling job (python -m sedd_jax.sample --input=...); -h says how.
set -euo pipefail
here="$(dirname "$0")"
# shellcheck source=launch/command.sh
. "$here/command.sh"
# shellcheck source=launch/tpu.sh
. "$here/tpu.sh"
on_tpu sedd_jax.sample input "$@"
