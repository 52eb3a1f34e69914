"""The probability of a constraint given noised tokens, against a sum over all clean sequences."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.diffusion.constraint import count, forbid
from sedd_jax.errors import BadInput

TOKENS, LENGTH, SIGMA = 3, 3, 0.6
GRAPHS = {"absorb": sedd.graph.absorbing(TOKENS), "uniform": sedd.graph.uniform(TOKENS)}
FREQUENCIES = (0.2, 0.5, 0.3)


def summed(graph, xt, allowed):
    """log P(allowed | x_t) of independent tokens."""
    kernel = np.asarray(graph.transition(jnp.arange(TOKENS), jnp.array(SIGMA)), float)
    clean = np.array([*itertools.product(range(TOKENS), repeat=LENGTH)])
    prior = np.array(FREQUENCIES)[clean].prod(-1)
    joint = prior * kernel[clean[None], np.asarray(xt)[:, None]].prod(-1)
    with np.errstate(divide="ignore"):
        return np.log((joint * allowed(clean)).sum(-1) / joint.sum(-1))


CASES = {
    "count": (
        lambda graph: count(graph, (0, 2), at_least=1, at_most=2, frequencies=FREQUENCIES),
        lambda clean: np.isin((clean != 1).sum(-1), (1, 2)),
    ),
    "forbid": (
        lambda graph: forbid(graph, (2,), frequencies=FREQUENCIES),
        lambda clean: (clean != 2).all(-1),
    ),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("absorb", "count"),
        ("uniform", "forbid"),
        pytest.param("absorb", "forbid", marks=pytest.mark.slow),
        pytest.param("uniform", "count", marks=pytest.mark.slow),
    ],
)
def test_the_closed_form_is_the_sum(name, case):
    graph, (constraint, allowed) = GRAPHS[name], CASES[case]
    xt = jnp.array([*itertools.product(range(graph.num_states), repeat=LENGTH)])
    found = np.asarray(constraint(graph)(xt, jnp.full(len(xt), SIGMA)))
    wanted = summed(graph, xt, allowed)
    np.testing.assert_allclose(np.exp(found), np.exp(wanted), rtol=1e-5)
    assert np.isneginf(found).any() == (name == "absorb")  # exactly 0 where it is ruled out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda graph: count(graph, ()), "tokens must be ids"),
        (lambda graph: count(graph, (3,)), "tokens must be ids"),
        (lambda graph: count(graph, "GC"), "tokens must be ids .* got 'GC'"),
        (lambda graph: count(graph, (1.5,)), "tokens must be ids"),
        (lambda graph: forbid(graph, (0,), "GC"), "frequencies must be 3 positive"),
        (lambda graph: count(graph, (1,), at_least=3, at_most=2), "at_least=3 must be in"),
        (lambda graph: forbid(graph, (0, 1, 2)), "forbids all 3 tokens"),
        (
            lambda graph: count(graph, (1,), at_least=5)(jnp.zeros((1, 4), int), jnp.ones(1)),
            "at_least=5 can be no number of 4 positions",
        ),
        (lambda graph: forbid(graph, (0,), (0.5, 0.5)), "frequencies must be 3 positive"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make(GRAPHS["uniform"])
