import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.errors import BadInput
from sedd_jax.inference.bound import Bound, estimate_bound, sequence_loss
from sedd_jax.runtime.components import Components

VOCAB_SIZE, LENGTH = 5, 4


def constant_model(graph):
    """Scores of a network that knows nothing: uniform over tokens, whatever its input."""

    def apply(params, xt, sigma, key=None):
        del params, key
        shape = (*xt.shape, graph.num_states)
        return jnp.broadcast_to(
            -jnp.log(jnp.expm1(sigma))[:, None, None] - jnp.log(VOCAB_SIZE), shape
        )

    return apply


@pytest.fixture(scope="module")
def knows_nothing():
    graph, noise = sedd.graph.absorbing(VOCAB_SIZE), sedd.noise.loglinear()
    return jax.jit(sequence_loss(Components(graph, noise, _Model(constant_model(graph)))))


class _Model:
    def __init__(self, apply):
        self.apply = apply


def test_a_uniform_guess_has_the_entropy_of_a_uniform_guess(knows_nothing):
    """Exact: the bound of the uniform guess is log V per token, up to the range of t."""
    tokens = jax.random.randint(jax.random.key(0), (4000, LENGTH), 0, VOCAB_SIZE)
    bound = estimate_bound(knows_nothing, {}, jax.random.key(1), np.split(tokens, 4), 1e-3)
    assert bound.nats.shape == (4000,)
    assert bound.nats_per_token == pytest.approx(np.log(VOCAB_SIZE), abs=4 * bound.stderr / LENGTH)
    assert bound.perplexity == pytest.approx(np.exp(bound.nats_per_token))


def test_the_estimate_is_a_function_of_its_key_and_not_of_the_batches(knows_nothing):
    tokens = np.zeros((8, LENGTH), np.int32)
    batches = [tokens[:4], tokens[4:]]

    def nats(seed):
        return estimate_bound(knows_nothing, {}, jax.random.key(seed), batches, 1e-3).nats

    chex.assert_trees_all_equal(nats(0), nats(0))
    assert not np.array_equal(nats(0), nats(1))


def test_standard_error_of_the_mean():
    bound = Bound(np.array([1.0, 3.0]), length=2)
    assert (bound.mean, bound.nats_per_token, bound.stderr) == (2.0, 1.0, 1.0)


def test_nll_bound_of_a_trained_run(smoke_run):
    checkpoint = sedd.load(smoke_run)
    tokens = np.full((6, 32), ord("e"), np.int32)
    bound = sedd.nll_bound(jax.random.key(0), checkpoint, tokens, batch_size=4)
    assert bound.nats.shape == (6,)
    assert 0 < bound.nats_per_token < np.log(258)
    with pytest.raises(BadInput, match=r"needs ids in \[0, 257\)"):
        sedd.nll_bound(jax.random.key(0), checkpoint, tokens * 0 + 257)
    with pytest.raises(BadInput, match="at least one sequence"):
        sedd.nll_bound(jax.random.key(0), checkpoint, tokens[:0])
