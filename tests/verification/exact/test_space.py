import itertools

import numpy as np
import pytest
from scipy.linalg import expm

from sedd_jax.diffusion import graph as graphs
from sedd_jax.verification.exact.space import (
    Space,
    goodness_of_fit,
    kl_divergence,
    product_distribution,
    sequences,
    total_variation,
)

SIGMAS = [1e-4, 0.3, 3.0, 20.0]


@pytest.mark.parametrize(("num_states", "length"), [(2, 1), (2, 3), (4, 3), (3, 2)])
def test_sequences_are_those_of_itertools_in_their_order(num_states, length):
    expected = list(itertools.product(range(num_states), repeat=length))
    np.testing.assert_array_equal(sequences(num_states, length), expected)


def test_states_and_clean_rows(brute):
    np.testing.assert_array_equal(brute.space.states, brute.states)
    np.testing.assert_array_equal(brute.space.clean, brute.clean)
    tokens = brute.num_states - (brute.name == "absorb")
    assert len(brute.clean) == tokens**brute.length


def test_index_is_the_row_of_a_sequence(brute):
    rows = np.random.default_rng(0).permutation(len(brute.states)).reshape(-1, 1)
    np.testing.assert_array_equal(brute.space.index(np.array(brute.states)[rows]), rows)
    assert brute.space.index(np.array(brute.states[5])) == 5


def test_neighbours_are_the_rows_of_one_token_changes(brute):
    shape = (len(brute.states), brute.length, brute.num_states)
    assert brute.space.neighbours.shape == shape
    for s, i, y in np.ndindex(shape):
        assert brute.space.neighbours[s, i, y] == brute.change(s, i, y)


def test_forward_generator_is_the_sum_of_token_rates(brute):
    got = brute.space.forward_generator()
    np.testing.assert_allclose(got, brute.generator, atol=1e-6)  # the token rates are float32
    kronecker_sum = sum(
        np.kron(np.kron(np.eye(brute.num_states**i), brute.Q), np.eye(brute.num_states**after))
        for i, after in enumerate(reversed(range(brute.length)))
    )
    np.testing.assert_allclose(got, kronecker_sum, atol=1e-6)
    np.testing.assert_allclose(got.sum(0), 0, atol=1e-6)


def test_generator_has_every_rate_in_the_column_it_leaves(brute):
    shape = (len(brute.states), brute.length, brute.num_states)
    rates = np.random.default_rng(0).uniform(0.1, 3, shape)
    expected = np.zeros((len(brute.states),) * 2)
    for s, i, y in np.ndindex(shape):
        expected[brute.change(s, i, y), s] += rates[s, i, y]
    np.testing.assert_allclose(brute.space.generator(rates), expected, rtol=1e-14)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_transition_is_the_matrix_exponential(brute, sigma):
    got = brute.space.transition(sigma)  # [from, to]
    assert got.dtype == np.float64
    # expm keeps 1e-16 of the largest entry, the product of token kernels of every entry's own
    # size, up to the 1e-16 / exp(-20) of expm at sigma = 20
    np.testing.assert_allclose(got, expm(sigma * brute.generator).T, atol=1e-13)
    np.testing.assert_allclose(got, brute.transition(sigma).T, rtol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-14)


def test_transition_without_noise_is_the_identity(brute):
    np.testing.assert_array_equal(brute.space.transition(0.0), np.eye(len(brute.states)))


def test_limit_is_where_the_forward_process_ends(brute):
    limit = brute.space.limit()
    assert limit.dtype == np.float64
    guess = brute.space.uniform_data()
    np.testing.assert_allclose(limit, brute.transition(40) @ guess, atol=1e-14)
    np.testing.assert_allclose(brute.generator @ limit, 0, atol=1e-15)


def test_guess_is_uniform_over_clean_sequences(brute):
    expected = [(s in brute.clean) / len(brute.clean) for s in range(len(brute.states))]
    np.testing.assert_allclose(brute.space.uniform_data(), expected, rtol=1e-15)


def test_embedded_puts_a_distribution_of_clean_sequences_among_all(brute):
    distribution = np.random.default_rng(0).dirichlet(np.ones(len(brute.clean)))
    got = brute.space.extend(distribution)
    expected = dict(zip(brute.clean, distribution, strict=True))
    assert list(got) == [expected.get(s, 0.0) for s in range(len(brute.states))]


@pytest.mark.parametrize("support", [1.0, 0.5, 0.0])
def test_random_data_has_its_support_and_no_masks(brute, support):
    data = brute.space.random_data(0, support)
    assert data.shape == (len(brute.states),) and data.dtype == np.float64
    assert data.sum() == pytest.approx(1, abs=1e-14)
    held = np.flatnonzero(data)
    assert set(held) <= set(brute.clean)
    assert len(held) == max(1, round(support * len(brute.clean)))


def test_random_data_depends_on_the_seed_alone(brute):
    space = brute.space
    np.testing.assert_array_equal(space.random_data(1, 0.5), space.random_data(1, 0.5))
    supports = {tuple(np.flatnonzero(space.random_data(seed, 0.5))) for seed in range(5)}
    assert len(supports) > 1  # the support is drawn too
    assert np.any(space.random_data(0) != space.random_data(1))


def test_random_data_is_uniform_on_the_simplex():
    # Over n sequences, E sum p^2 = 2 / (n + 1); 2000 draws of n = 4, standard error 0.003.
    space = Space(graphs.uniform(2), 2)
    squares = [(space.random_data(seed) ** 2).sum() for seed in range(2000)]
    assert np.mean(squares) == pytest.approx(2 / 5, abs=0.012)


def test_product_distribution_multiplies_the_distributions_of_the_positions():
    probs = np.random.default_rng(0).dirichlet(np.ones(4), (5, 3))  # [S, L, N]
    got = product_distribution(probs)
    assert got.shape == (5, 64)
    for s in range(5):
        for row, state in enumerate(itertools.product(range(4), repeat=3)):
            expected = probs[s, 0, state[0]] * probs[s, 1, state[1]] * probs[s, 2, state[2]]
            assert got[s, row] == pytest.approx(expected, rel=1e-14)


def test_total_variation_is_the_largest_difference_of_an_event():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 2)
    events = itertools.product([False, True], repeat=6)
    largest = max(p[list(event)].sum() - q[list(event)].sum() for event in events)
    assert total_variation(p, q) == pytest.approx(largest, rel=1e-12)
    assert total_variation(q, p) == pytest.approx(largest, rel=1e-12)
    assert total_variation(p, p) == 0
    assert total_variation(np.array([1.0, 0]), np.array([0.0, 1])) == 1


def test_kl_divergence_is_the_mean_log_ratio_under_the_first_distribution():
    p, q = np.random.default_rng(0).dirichlet(np.ones(6), 2)
    p[2] = 0  # 0 log 0 = 0
    p /= p.sum()
    expected = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert kl_divergence(p, q) == pytest.approx(expected, rel=1e-12)
    assert kl_divergence(p, p) == 0
    assert kl_divergence(q, p) == np.inf  # q has what p lacks
    assert kl_divergence(np.array([0.5, 0.5, 0]), np.array([0.25, 0.75, 0])) < np.inf


def test_conditional_is_bayes_rule_over_the_sequences(brute):
    data = brute.space.random_data(0)
    given = {1: 0}
    expected = np.array([p * (state[1] == 0) for p, state in zip(data, brute.states, strict=True)])
    got = brute.space.conditional(data, given)
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-12)


def test_goodness_of_fit():
    probs = np.array([0.5, 0.3, 0.2 - 1e-5, 1e-5, 0.0])
    counts = np.random.default_rng(0).multinomial(10_000, probs)
    assert goodness_of_fit(counts / 10_000, probs, 10_000) > 1e-3
    other = np.array([0.47, 0.33, 0.2, 0, 0])
    assert goodness_of_fit(other, probs, 10_000) < 1e-6
    assert goodness_of_fit(np.array([0.5, 0.3, 0.19, 0, 0.01]), probs, 10_000) == 0  # impossible
