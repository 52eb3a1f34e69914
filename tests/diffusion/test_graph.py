import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import chisquare

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion import graph as graph_module
from sedd_jax.errors import BadInput
from tests.skewed import skewed

V = 4
# Q[y, x] is the rate from x to y: columns sum to 0.
UNIFORM_Q = np.array(  # Eq. 15, over V
    [
        [-0.75, 0.25, 0.25, 0.25],
        [0.25, -0.75, 0.25, 0.25],
        [0.25, 0.25, -0.75, 0.25],
        [0.25, 0.25, 0.25, -0.75],
    ]
)
ABSORBING_Q = np.array(  # Eq. 16
    [
        [-1.0, 0.0, 0.0, 0.0],
        [0.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, -1.0, 0.0],
        [1.0, 1.0, 1.0, 0.0],
    ]
)
HYBRID_Q = np.array(  # 0.4 to the mask, 0.6 to one of three tokens
    [
        [-0.8, 0.2, 0.2, 0.2],
        [0.2, -0.8, 0.2, 0.2],
        [0.2, 0.2, -0.8, 0.2],
        [0.4, 0.4, 0.4, -0.6],
    ]
)
SKEWED_Q = np.array(  # whatever pi is
    [
        [-0.9, 0.1, 0.1, 0.1],
        [0.0, -1.0, 0.0, 0.0],
        [0.6, 0.6, -0.4, 0.6],
        [0.3, 0.3, 0.3, -0.7],
    ]
)
SIGMAS = [1e-4, 1e-2, 0.5, 3.0, 20.0]
RTOL = 2e-6  # a few float32 roundings, each 6e-8, relative to every entry, however small
LEVEL = 1e-4  # of a single chi-square test; keys are fixed, so a pass stays a pass

DRAWS = 5000

STATES = jnp.arange(V)


@pytest.fixture(
    params=[
        (graph_module.absorbing(3), ABSORBING_Q),
        (graph_module.uniform(4), UNIFORM_Q),
        (graph_module.hybrid(3, mask=0.4), HYBRID_Q),
        (skewed(0.1, 0.0, 0.6, 0.3), SKEWED_Q),
    ],
    ids=["absorb", "uniform", "hybrid", "skewed"],
)
def case(request):
    """A graph over 4 states and its Q."""
    return request.param


# Compiling the random bits takes most of the time here, and optimising their code half of that.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(graph, method, *arrays):
    return getattr(graph, method)(*arrays)


@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def _sample_transition(graph, key, x0, sigma):
    return graph.sample_transition(key, x0, sigma)


def _samples(graph, seed, x0, sigma):
    """DRAWS samples of x_t for each of the 16 rows' x0."""
    x0 = jnp.array(np.repeat(x0[:, None], DRAWS, axis=1), jnp.int32)
    xt = _sample_transition(graph, jax.random.key(seed), x0, jnp.array(sigma))
    assert xt.shape == x0.shape and xt.dtype == x0.dtype
    return np.asarray(xt)


def _wide(sigma):
    """The float64 value of the float32 that `sigma` becomes."""
    return float(np.float32(sigma))


def test_states_tokens_and_mask():
    absorbing, uniform = graph_module.absorbing(10), graph_module.uniform(10)
    assert (absorbing.num_states, absorbing.num_tokens, absorbing.mask_id) == (11, 10, 10)
    assert (uniform.num_states, uniform.num_tokens, uniform.mask_id) == (10, 10, None)
    hybrid, own = graph_module.hybrid(10), skewed(0.2, 0.5, 0.3)
    assert (hybrid.num_states, hybrid.num_tokens, hybrid.mask_id, hybrid.mask) == (11, 10, 10, 0.9)
    assert (own.num_states, own.num_tokens, own.mask_id) == (3, 3, None)
    assert skewed(0.2, 0.5, 0.3, mask=True).num_tokens == 2
    assert graph_module.GRAPHS["absorb"](10) == absorbing
    assert graph_module.GRAPHS["uniform"](10) == uniform
    assert graph_module.GRAPHS["hybrid"](10) == hybrid


def test_what_a_limit_says_of_a_graph():
    """One value of pi is enough for the loss where tokens leave for each other or a mask alone."""
    found = {
        graph: (graph.equal_limit, graph.absorbs)
        for graph in (
            graph_module.absorbing(3),
            graph_module.uniform(4),
            graph_module.hybrid(3),
            graph_module.hybrid(3, mask=0.25),  # as probable as each token, but no token
            skewed(0.0, 0.0, 1.0, mask=True),
            skewed(0.25, 0.25, 0.25, 0.25),
            skewed(0.5, 0.3, 0.2),
        )
    }
    values = [(0, True), (0.25, False), *[(None, False)] * 2, (0, True), (0.25, False)]
    assert list(found.values()) == [*values, (None, False)]


class Former(graph_module.Graph):
    """A graph of one's own as it was written when every class had to give `limit_of_token`."""

    num_tokens = property(lambda self: self.num_states - 1)
    mask_id = property(lambda self: self.num_states - 1)
    limit = property(lambda self: jax.nn.one_hot(self.mask_id, self.num_states))
    limit_of_token = 0.0

    def sample_limit(self, key, shape):
        return jnp.full(shape, self.mask_id, jnp.int32)


def test_the_former_name_of_the_limit_of_tokens():
    graph = Former(V)
    assert (graph.limit_of_token, graph.equal_limit, graph.absorbs) == (0, 0, True)
    with pytest.warns(DeprecationWarning, match="is now equal_limit"):
        assert graph_module.uniform(V).limit_of_token == 1 / V
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(BadInput, match="no value for Hybrid.*use equal_limit"),
    ):
        graph_module.hybrid(V).limit_of_token  # noqa: B018 - it raises


@pytest.mark.parametrize("mask", [0.0, 1e-13, 1.0, -0.5, float("nan")])
def test_a_share_of_masks_that_is_none(mask):
    with pytest.raises(BadInput, match="mask must be at least 1e-12 and below 1"):
        graph_module.hybrid(3, mask=mask)


def test_rate_is_the_column_of_q(case):
    graph, Q = case
    np.testing.assert_allclose(_call(graph, "rate", STATES), Q.T, rtol=RTOL)


def test_transposed_rate_is_the_row_of_q(case):
    graph, Q = case
    np.testing.assert_allclose(_call(graph, "transposed_rate", STATES), Q, rtol=RTOL)


@pytest.mark.parametrize("vocab_size", [2, 7, 27])
def test_uniform_rate_of_leaving_does_not_grow_with_the_vocabulary(vocab_size):
    rate = np.asarray(graph_module.uniform(vocab_size).rate(jnp.array(1)))
    np.testing.assert_allclose(rate[0], 1 / vocab_size, rtol=RTOL)
    np.testing.assert_allclose(rate[1], 1 / vocab_size - 1, rtol=RTOL)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_transition_is_the_column_of_the_matrix_exponential(case, sigma):
    graph, Q = case
    got = _call(graph, "transition", STATES, jnp.float32(sigma))
    np.testing.assert_allclose(got, expm(_wide(sigma) * Q).T, rtol=RTOL)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_transposed_transition_is_the_row_of_the_matrix_exponential(case, sigma):
    graph, Q = case
    got = _call(graph, "transposed_transition", STATES, jnp.float32(sigma))
    np.testing.assert_allclose(got, expm(_wide(sigma) * Q), rtol=RTOL)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_transition_columns_sum_to_one(case, sigma):
    graph, _ = case
    total = _call(graph, "transition", STATES, jnp.float32(sigma)).sum(-1)
    np.testing.assert_allclose(total, np.ones(V), rtol=RTOL)


@pytest.mark.parametrize("first", [1e-3, 0.4, 2.0])
@pytest.mark.parametrize("second", [1e-3, 1.1])
def test_two_transitions_in_a_row_add_their_noise(case, first, second):
    graph, _ = case

    def matrix(sigma):
        return np.float64(_call(graph, "transition", STATES, jnp.float32(sigma))).T

    np.testing.assert_allclose(
        matrix(second) @ matrix(first), matrix(_wide(first) + _wide(second)), rtol=2 * RTOL
    )


@pytest.mark.parametrize("sigma", [1e-4, 0.3, 2.0, 7.0])
def test_inverse_transition_is_the_exponential_of_minus_sigma_q(case, sigma):
    graph, Q = case
    score = np.random.default_rng(0).uniform(0.1, 3, (2, 3, V)).astype(np.float32)
    got = _call(graph, "inverse_transition", jnp.array(score), jnp.float32(sigma))
    expected = np.einsum("yx,blx->bly", expm(-_wide(sigma) * Q), np.float64(score))
    # Terms of size exp(sigma) * sum(score) cancel, so the error is relative to those.
    atol = 4 * 2.0**-24 * np.exp(sigma) * score.sum(-1).max()
    np.testing.assert_allclose(got, expected, rtol=RTOL, atol=atol)


@pytest.mark.parametrize("sigma", [1e-3, 0.7, 2.0])
def test_inverse_transition_undoes_transition(case, sigma):
    graph, _ = case
    sigma = jnp.float32(sigma)
    got = _call(graph, "inverse_transition", _call(graph, "transition", STATES, sigma), sigma)
    np.testing.assert_allclose(got, np.eye(V), atol=4 * 2.0**-24 * np.exp(sigma))


@pytest.mark.parametrize("method", ["transition", "transposed_transition"])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)], ids=["scalar", "row", "position"])
def test_sigma_has_the_leading_axes_of_x(case, method, shape):
    graph, Q = case
    x = np.array([[0, 1, 3], [2, 3, 0]])
    sigma = np.float32(np.linspace(0.1, 2.5, int(np.prod(shape))).reshape(shape))
    got = _call(graph, method, jnp.array(x), jnp.array(sigma))
    assert got.shape == (2, 3, V)
    for b, i in np.ndindex(2, 3):
        matrix = expm(float(sigma[(b, i)[: len(shape)]]) * Q)
        expected = matrix[:, x[b, i]] if method == "transition" else matrix[x[b, i]]
        np.testing.assert_allclose(got[b, i], expected, rtol=RTOL)


def test_inverse_transition_takes_one_sigma_per_row(case):
    graph, Q = case
    score = np.random.default_rng(1).uniform(0.1, 3, (2, 3, V)).astype(np.float32)
    sigma = np.array([0.2, 1.5], np.float32)
    got = _call(graph, "inverse_transition", jnp.array(score), jnp.array(sigma))
    for b in range(2):
        expected = np.float64(score[b]) @ expm(-float(sigma[b]) * Q).T
        np.testing.assert_allclose(got[b], expected, rtol=RTOL, atol=2e-5)


def test_sample_transition_has_the_frequencies_of_its_own_row(case):
    graph, Q = case
    sigmas = [1.0, 0.02, 3.0, 0.3]  # the smallest expected count is 25
    x0 = np.tile(np.arange(V), 4)
    sigma = np.repeat(np.float32(sigmas), V)
    xt = _samples(graph, 0, x0, sigma)
    for row in range(len(sigma)):
        probs = expm(float(sigma[row]) * Q)[:, x0[row]]
        counts = np.bincount(xt[row], minlength=V)
        possible = probs > 1e-12
        assert counts[~possible].sum() == 0
        if possible.sum() > 1:
            expected = DRAWS * probs[possible] / probs[possible].sum()
            assert chisquare(counts[possible], expected).pvalue > LEVEL, (sigma[row], counts)


def test_sample_transition_takes_a_scalar_sigma(case):
    graph, _ = case
    x0 = np.tile(np.arange(V), 4)
    same = _samples(graph, 1, x0, np.full(16, 0.5, np.float32))
    np.testing.assert_array_equal(_samples(graph, 1, x0, np.float32(0.5)), same)


def test_sample_transition_draws_positions_apart(case):
    # Moves of neighbouring positions are independent: the pair moves with the product of chances.
    graph, Q = case
    moved = _samples(graph, 2, np.zeros(16, int), np.full(16, 0.7, np.float32)) != 0
    both = (1 - expm(0.7 * Q)[0, 0]) ** 2
    for pairs in [moved[:, ::2] & moved[:, 1::2], moved[::2] & moved[1::2]]:
        assert abs(pairs.mean() - both) < 4 * np.sqrt(both * (1 - both) / pairs.size)


def test_nothing_moves_without_noise(case):
    graph, _ = case
    x0 = np.tile(np.arange(V), 4)
    xt = _samples(graph, 3, x0, np.zeros(16, np.float32))
    np.testing.assert_array_equal(xt, np.broadcast_to(x0[:, None], xt.shape))
    np.testing.assert_array_equal(_call(graph, "transition", STATES, jnp.float32(0)), np.eye(V))


def assert_from_limit(graph, states):
    """A chi-square test of draws from pi."""
    possible = np.asarray(graph.limit) > 0
    counts, probs = np.bincount(states, minlength=V), np.float64(graph.limit)[possible]
    assert not counts[~possible].any()
    if len(probs) > 1:
        expected = len(states) * probs / probs.sum()
        assert chisquare(counts[possible], expected).pvalue > LEVEL


def test_samples_forget_their_start_at_large_noise(case):
    graph, _ = case
    xt = _samples(graph, 4, np.tile(np.arange(V), 4), np.full(16, 20, np.float32))
    for row in xt:
        assert_from_limit(graph, row)


def test_forward_marginal_tends_to_the_limit(case):
    graph, _ = case
    p0 = np.array([0.5, 0.3, 0.2, 0])
    marginal = p0 @ np.float64(_call(graph, "transition", STATES, jnp.float32(20)))
    # exp(-20) = 2e-9 is left, below the float32 rounding of the entries themselves
    np.testing.assert_allclose(marginal, graph.limit, atol=1e-7)


def test_limit_is_stationary_and_sums_to_one(case):
    graph, Q = case
    limit = np.float64(graph.limit)
    np.testing.assert_allclose(Q @ limit, np.zeros(V), atol=1e-7)
    assert limit.sum() == pytest.approx(1)


def test_sample_limit_draws_from_the_limit(case):
    graph, _ = case
    x = np.asarray(graph.sample_limit(jax.random.key(5), (100, 200)))
    assert x.shape == (100, 200) and x.dtype == np.int32
    assert_from_limit(graph, x.ravel())


def test_a_table_of_aliases_has_the_probabilities_that_it_was_made_of():
    probs = np.random.default_rng(0).dirichlet(np.full(500, 0.1))  # from 1e-30 to 0.1
    probs[7] = 0
    keep, alias = categorical.alias_table(probs)
    found = np.bincount(np.arange(500), keep, 500) + np.bincount(alias, 1 - keep, 500)
    np.testing.assert_allclose(found / 500, probs / probs.sum(), rtol=1e-9, atol=1e-16)


def average_limit(pieces):
    """The average of limits on pieces (noise, limit), which counts what comes late most."""
    total, left = np.zeros(V), sum(noise for noise, _ in pieces)
    for noise, limit in pieces:
        left -= noise
        total += np.exp(-left) * -np.expm1(-noise) * limit
    return total / total.sum()


def test_a_limit_that_changes_in_time_acts_as_its_average():
    """The ordered product of the exponentials of pieces, as for GIDD."""
    rng = np.random.default_rng(0)
    pieces = [(noise, rng.dirichlet(np.ones(V))) for noise in (0.3, 0.05, 1.2, 0.4, 0.01)]
    product = np.eye(V)
    for noise, limit in pieces:
        product = expm(noise * (np.outer(limit, np.ones(V)) - np.eye(V))) @ product
    graph, noise = skewed(*average_limit(pieces).tolist()), sum(noise for noise, _ in pieces)
    got = _call(graph, "transition", STATES, jnp.float32(noise))
    np.testing.assert_allclose(got, product.T, rtol=RTOL)
    plain = np.average([limit for _, limit in pieces], axis=0, weights=[each for each, _ in pieces])
    assert np.abs(plain - average_limit(pieces)).max() > 0.03
