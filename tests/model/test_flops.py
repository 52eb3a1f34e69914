import functools
import math

import jax
import jax.numpy as jnp
import pytest

from sedd_jax.model.autoregressive import causal_model
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.flops import forward_flops
from sedd_jax.model.score_model import score_model

STATES, LENGTH = 128, 24  # as many states as columns: no padding to count
SIZES = {"hidden_size": 48, "num_blocks": 3}
FLOPS = functools.partial(forward_flops, **SIZES, num_states=STATES, length=LENGTH)


def jaxprs_in(eqn):
    """The jaxprs among the parameters of an equation, as of a scan or a jitted function."""
    leaves = jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def product_flops(jaxpr):
    """FLOPs of the matrix products of a jaxpr, those of a scan's body once for every turn."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * eqn.outvars[0].aval.size
        assert eqn.primitive.name != "while", "the number of turns is not known"
        inner = sum(map(product_flops, jaxprs_in(eqn)))
        total += inner * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else inner
    return total


def sizes(max_length=None):
    model = ModelConfig(**SIZES, cond_dim=16, num_heads=4, remat="none")
    return TransformerConfig(model, STATES, jnp.dtype("float32"), max_length)


@pytest.fixture(scope="module")
def network():
    model = score_model(sizes())
    return model, jax.eval_shape(model.init, jax.random.key(0))


def counted(answered):
    return FLOPS(cond_dim=16, answered=answered)


def batch(rows):
    return jnp.zeros((rows, LENGTH), jnp.int32), jnp.ones(rows)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_formula_counts_every_product_of_a_forward_pass(network, rows):
    model, params = network
    program = jax.make_jaxpr(model.apply)(params, *batch(rows))
    assert product_flops(program.jaxpr) == rows * counted(1.0)


def test_a_backward_pass_costs_two_forward_passes(network):
    model, params = network

    def loss(params, xt, sigma):
        return model.apply(params, xt, sigma).sum()

    program = jax.make_jaxpr(jax.grad(loss))(params, *batch(2))
    # but for the gradient by the features of sigma, which nothing asks for
    assert product_flops(program.jaxpr) == pytest.approx(3 * 2 * counted(1.0), rel=0.01)


def test_the_head_costs_what_it_answers():
    assert counted(1.0) - counted(0.25) == 0.75 * 2 * LENGTH * 48 * STATES


def test_the_causal_network_is_one_without_a_condition():
    model = causal_model(sizes(LENGTH))
    params = jax.eval_shape(model.init, jax.random.key(0))
    program = jax.make_jaxpr(model.apply)(params, batch(2)[0])
    assert product_flops(program.jaxpr) == 2 * FLOPS(cond_dim=0)
