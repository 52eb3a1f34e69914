"""What a chip holds: of a program that was compiled here, and by what compilers say."""

import jax
import jax.numpy as jnp
import pytest

from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.memory import (
    Memory,
    largest_carried,
    memory_of,
    memory_of_refused,
)
from sedd_jax.planning.topology import CHIPS

GIB = 2**30
SHORT = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(16.37G) exceeds available HBM (15.75G)."
)
LONG = """\
RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 41.74G of 16.00G hbm. Exceeded.

  Largest program allocations in hbm:

  1. Size: 32.00G
     Operator: op_name="jit(f)/add"
     Shape: s32[8388608,8,4]{2,1,0:T(8,128)}
     Unpadded size: 1.00G

  2. Size: 512.00M
     Shape: bf16[4,128]{1,0:T(8,128)}
"""


@pytest.mark.parametrize(
    ("text", "needed", "largest"),
    [
        (SHORT, 16.37, {}),
        (LONG, 41.74, {"s32[8388608,8,4]": 32 * GIB, "bf16[4,128]": GIB / 2}),
    ],
)
def test_a_refusal_is_read(text, needed, largest):
    memory = memory_of_refused(jax.errors.JaxRuntimeError(text), 3 * GIB, CHIPS["v5e"])
    assert memory.refused and not memory.fits
    assert memory.needed_bytes == pytest.approx(needed * GIB)
    assert memory.bytes_by_part["arguments"] == 3 * GIB
    assert memory.largest_temporaries_bytes == largest


def test_a_refusal_in_other_words_says_what_is_known():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no more.")
    memory = memory_of_refused(error, 3 * GIB, CHIPS["v5e"])
    assert not memory.fits
    assert memory.needed_bytes == 3 * GIB


def test_other_errors_are_raised():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        memory_of_refused(jax.errors.JaxRuntimeError("INTERNAL: bug"), 0, CHIPS["v5e"])


@pytest.mark.parametrize(("donated", "results"), [((), 4096), ((0,), 0)])
def test_results_in_place_of_arguments_take_nothing(donated, results):
    function = jax.jit(lambda x: jnp.sort(x) + 1, donate_argnums=donated)
    compiled = function.lower(jnp.zeros(1024)).compile()
    memory = memory_of(compiled, hlo.parse(compiled.as_text()), CHIPS["h100"])
    assert memory.bytes_by_part["arguments"] == 4096
    assert memory.bytes_by_part["results"] == results
    assert memory.largest_temporaries_bytes["f32[1024]"] == 4096
    assert memory.fits


def test_what_loops_hand_on_is_known_before_compiling():
    def block(x, scale):  # keeps cos(x) for the backward pass; no loop hands the matrix on
        matrix = jax.lax.stop_gradient(jnp.outer(x, x))
        return jnp.sin(x) * scale + matrix.sum(0), None

    def loss(x, scales):
        return jax.lax.scan(block, x, scales)[0].sum()

    lowered = jax.jit(jax.grad(loss)).lower(jnp.zeros(1024), jnp.zeros(6))
    found = largest_carried(lowered.as_text(), devices=2)
    name, size = next(iter(found.items()))
    assert name == "f32[6,1024] over 2 chips"
    assert size == 6 * 1024 * 4 / 2
    assert not any("1024,1024" in name for name in found)


def test_what_a_chip_holds_is_its_limit():
    parts = {"arguments": 10.0, "temporaries": 5.0}
    assert Memory(15.0, parts, {}).fits
    assert not Memory(14.9, parts, {}).fits
    assert not Memory(15.0, parts, {}, refused=True).fits
