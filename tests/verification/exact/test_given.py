"""Given tokens on enumerated sequences, each figure computed in two ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.verification.exact.given import exact_told_model, given_process
from sedd_jax.verification.exact.reverse_process import ReverseProcess, exact_process
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.held import rest_given

NOISE, GIVEN = noises.loglinear(), {1: 0}


@pytest.mark.parametrize(
    "graph", [graphs.uniform(2), graphs.absorbing(2)], ids=["uniform", "absorb"]
)
def test_told_scores_are_those_of_the_conditional_distribution(graph):
    space = Space(graph, 3)
    data = space.random_data(0)
    told = ReverseProcess(
        ScoreBased(graph, NOISE, exact_told_model(space)), exact_params(data), space
    )
    rest = given_process(told, GIVEN)
    states = jnp.asarray(rest.space.states)
    sigma = jnp.full(len(states), 0.7)
    wanted = jax.jit(exact_model(rest.space).apply)(
        exact_params(rest_given(space, data, GIVEN, rest.space)), states, sigma
    )
    got = jax.jit(rest.family.model.apply)(rest.params, states, sigma)
    np.testing.assert_allclose(np.exp(got), np.exp(wanted), rtol=1e-4, atol=1e-5)
    # told nothing, the network is the one of all noised tokens
    all_states = jnp.asarray(space.states)
    sigma = jnp.full(len(all_states), 0.7)
    np.testing.assert_allclose(
        np.exp(jax.jit(exact_told_model(space).apply)(exact_params(data), all_states, sigma)),
        np.exp(jax.jit(exact_model(space).apply)(exact_params(data), all_states, sigma)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_samples_of_the_rest_are_clamped_samples():
    space = Space(graphs.uniform(2), 3)
    process = exact_process(space, NOISE, space.random_data(0))
    settings = {"steps": 4, "sampler": "tweedie", "t_min": 1e-3}
    whole = process.sampler_distribution(given=GIVEN, **settings)
    rest = given_process(process, GIVEN)
    np.testing.assert_allclose(
        rest.sampler_distribution(**settings),
        rest_given(space, whole, GIVEN, rest.space),
        atol=1e-6,
    )
