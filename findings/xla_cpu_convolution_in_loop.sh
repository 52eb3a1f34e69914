#!/bin/bash
# jax 0.10.2 (and 0.12.0.1) on CPUs: the same 1-D convolution takes tens of times longer inside of
# lax.scan than outside (0.12.0.1: hundreds). Outside, every order of axes that dimension_numbers can
# name is equally fast. Inside, the forward pass is slow with the kernel's axes in the order IWO, and the
# derivative by the kernel is slow in every order, since autodiff names an order of its own for it.
#
# Why it surprises: dimension_numbers are documented as a free choice, a scan over layers is what large
# models are advised to use, and nothing but the clock tells. A profile shows a convolution either way.
# The optimised program shows why: outside of loops the compiler turns every convolution into the one
# order that has a fast implementation (its pass for that visits the entry computation alone); one in
# the body of a loop stays as it was written, and falls back to a loop over scalars.
# A user's own derivative with explicit transposes to that order is as fast inside as outside.
#
# Output seen (times differ by machine; the ratios are what is checked):
#   forward, kernel WIO: inside / outside 0.85
#   forward, kernel IWO: inside / outside 65
#   derivative, kernel WIO: inside / outside 37
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu env/bin/python - <<'PYTHON'
import time

import jax
import jax.numpy as jnp

LAYERS, BATCH, LENGTH, CHANNELS, WIDTH = 3, 32, 100, 128, 9


def program(order, looped, derivative):
    def layer(x, kernel):
        axes = ("NWC", order, "NWC")
        return jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=axes))

    def network(x, kernels):
        if looped:
            return jax.lax.scan(lambda x, kernel: (layer(x, kernel), None), x, kernels)[0]
        for i in range(LAYERS):
            x = layer(x, kernels[i])
        return x

    if derivative:
        return jax.jit(jax.grad(lambda x, kernels: network(x, kernels).sum(), argnums=1))
    return jax.jit(network)


def seconds(order, looped, derivative):
    shape = {"I": CHANNELS, "O": CHANNELS, "W": WIDTH}
    x = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, CHANNELS))
    kernels = 0.02 * jax.random.normal(jax.random.key(1), (LAYERS, *(shape[axis] for axis in order)))
    run = program(order, looped, derivative)
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(run(x, kernels))
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


found = {}
for order, derivative in (("WIO", False), ("IWO", False), ("WIO", True)):
    inside, outside = (seconds(order, looped, derivative) for looped in (True, False))
    name = f"{'derivative' if derivative else 'forward'}, kernel {order}"
    found[name] = inside / outside
    print(f"{name}: inside / outside {found[name]:.2g}")
ratios = list(found.values())
assert ratios[0] < 4 and min(ratios[1:]) > 8, "the behaviour has changed"
PYTHON
