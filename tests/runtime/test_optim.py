import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.runtime.config import OptimConfig
from sedd_jax.runtime.optim import ema_update, learning_rate, optimizer


def config(**changes):
    return dataclasses.replace(OptimConfig(), **changes)


def test_the_warm_up_counts_its_first_step_and_then_stays():
    schedule = learning_rate(config(learning_rate=1.0, warmup_steps=4), steps=100)
    np.testing.assert_allclose(
        [schedule(jnp.int32(n)) for n in (0, 1, 3, 4, 99)], [0.25, 0.5, 1, 1, 1]
    )


def test_cosine_falls_to_zero_at_the_last_step():
    schedule = learning_rate(config(learning_rate=2.0, warmup_steps=10, decay="cosine"), steps=110)
    np.testing.assert_allclose(
        [schedule(jnp.int32(n)) for n in (9, 10, 35, 60, 110)],
        [2.0, 2.0, 1 + np.cos(np.pi / 4), 1.0, 0.0],
        atol=1e-6,
    )


@pytest.mark.parametrize(("count", "rate"), [(1, 2 / 11), (10, 11 / 20), (10**6, 0.9999)])
def test_ema_warms_up(count, rate):
    ema = ema_update({"w": jnp.zeros(3)}, {"w": jnp.ones(3)}, jnp.int32(count), 0.9999)
    np.testing.assert_allclose(ema["w"], 1 - rate, rtol=1e-3)


def test_only_matrices_decay():
    params = {
        "a": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones((3, 3))},
        "n": {"scale": jnp.ones(3)},
    }
    transform = optimizer(config(weight_decay=0.1, learning_rate=1.0, warmup_steps=1), steps=10)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zero, transform.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1, rtol=1e-6)
    chex.assert_trees_all_equal(updates["a"]["bias"], zero["a"]["bias"])
    chex.assert_trees_all_equal(updates["n"], zero["n"])


def test_clipping_bounds_what_adam_sees():
    transform = optimizer(
        config(clip_norm=1.0, eps=1.0, learning_rate=1.0, warmup_steps=1), steps=9
    )
    params = {"kernel": jnp.zeros(4)}

    def update(size):
        return transform.update({"kernel": jnp.full(4, size)}, transform.init(params), params)[0]

    chex.assert_trees_all_close(update(1e3), update(1e6), rtol=1e-5)
    assert abs(update(1e-3)["kernel"][0]) < abs(update(1e3)["kernel"][0])
