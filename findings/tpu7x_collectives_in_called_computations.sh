#!/bin/bash
# libtpu 0.0.42.1 with jax 0.10.2, compiled ahead of time for TPU7x: the all-gathers of a sharded
# program are `call-start(...), async_execution_thread="sparsecore"`, and the all-gather itself stands
# in a called computation. The same program for v6e has the all-gathers in its schedule.
#
# Why it surprises: whoever reads `compiled.as_text()` for `all-gather-start` finds nothing that runs
# beside the computation, and whoever takes a call for computation finds nothing that is sent.
#
# Output seen:
#   v6e:2x2, 4 devices: {'all-gather-start': 0, 'call-start on sparsecore': 0, 'all-gather': 4}
#   tpu7x:2x2x1, 8 devices: {'all-gather-start': 0, 'call-start on sparsecore': 4, 'all-gather': 4}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/env"
"$folder/env/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cd "$folder"
TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu "$folder/env/bin/python" - 2>&1 <<'PYTHON' | grep devices
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

for name in ("v6e:2x2", "tpu7x:2x2x1"):
    devices = topologies.get_topology_desc(name, platform="tpu").devices
    mesh = Mesh(devices, "data")
    split, rows = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("data", None))

    def layers(x, weights):
        for weight in weights:
            x = jnp.tanh(x @ jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, P())))
        return x

    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=rows)
    weights = [jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=split)] * 4
    text = jax.jit(layers, out_shardings=rows).lower(x, weights).compile().as_text()
    found = {
        word: len(re.findall(pattern, text))
        for word, pattern in {
            "all-gather-start": r"= [^=]* all-gather-start\(",
            "call-start on sparsecore": r'call-start\([^\n]*async_execution_thread="sparsecore"',
            "all-gather": r"= [^=]* all-gather\(",
        }.items()
    }
    print(f"{name}, {len(devices)} devices: {found}", flush=True)
    in_calls = 4 if name.startswith("tpu7x") else 0
    assert list(found.values()) == [0, in_calls, 4], "the behaviour has changed"
PYTHON
