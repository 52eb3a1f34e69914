"""Bounds on the likelihood of any-order models, against enumeration of all orders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import sedd_jax as sedd
from sedd_jax.diffusion.any_order import lower_bound, order_log_prob, upper_bound
from sedd_jax.diffusion.first_hitting import FirstHitting
from sedd_jax.diffusion.sampler import Clamp, Process
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.verification.exact.space import Space

V, L = 3, 4  # with the mask; as few as have orders to disagree about
GRAPH, NOISE, T_MIN = sedd.graph.absorbing(V - 1), sedd.noise.loglinear(), 1e-3
SPACE = Space(GRAPH, L)
# of every token at every position of every sequence: conditionals of no one distribution
LOGITS = np.random.default_rng(0).normal(0, 1.5, (len(SPACE.states), L, V))
CLEAN = SPACE.states[SPACE.clean]
ORDERS = list(itertools.permutations(range(L)))


def score_fn(xt, sigma):
    del sigma
    return DenseScore(xt, jnp.asarray(LOGITS, jnp.float32)[SPACE.index(xt)])


def conditional(xt, position, token):
    logits = LOGITS[SPACE.index(np.array(xt)), position, : V - 1]
    return np.exp(logits[token]) / np.exp(logits).sum()


def by_loops(x0, order, start=()):
    """The probability of the tokens of `order`, drawn one after another."""
    xt, found = np.full(L, V - 1), 1.0
    xt[list(start)] = x0[list(start)]
    for position in order:
        found *= conditional(xt, position, x0[position])
        xt[position] = x0[position]
    return found


def orders_of(block):
    """All orders that go through the blocks from left to right."""
    return [it for it in ORDERS if np.array_equal(np.array(it) // block, np.arange(L) // block)]


def exact(block):
    """The probability of every clean sequence: the mean over orders."""
    return np.array([np.mean([by_loops(x0, it) for it in orders_of(block)]) for x0 in CLEAN])


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_the_probability_of_an_order_is_the_product_of_its_conditionals(block):
    """A smaller u leaves the mask later; u of other blocks make no difference."""
    u, x0, numbers, wanted = [], [], [], []
    for number in range(-(-L // block)):
        own = range(number * block, min((number + 1) * block, L))
        for order, row in itertools.product(itertools.permutations(own), CLEAN):
            u.append(np.linspace(0.3, 0.9, L))
            u[-1][list(order)] = np.linspace(0.8, 0.2, len(order))
            x0.append(row)
            numbers.append(number)
            wanted.append(by_loops(row, order, range(own[0])))
    given = np.float32(u), np.array(x0), np.ones((len(u), L), bool), np.array(numbers)
    found = order_log_prob(
        score_fn, NOISE, V - 1, *map(jnp.asarray, given), block=block, t_min=T_MIN
    )
    np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-5)


@pytest.mark.parametrize("draws", [2, 3])
def test_both_bounds_are_on_their_side_of_every_sequence(draws):
    """Their exact expectations, over all tuples of orders; with more draws they come closer."""
    log_p = np.log(exact(L))
    log_w = np.log([[by_loops(x0, order) for order in ORDERS] for x0 in CLEAN])  # [C, orders]

    def expectations(draws):
        tuples = np.array(list(itertools.product(range(len(ORDERS)), repeat=draws))).T
        drawn = log_w[:, tuples].transpose(1, 0, 2).reshape(draws, -1)
        return [
            bound(drawn).reshape(len(CLEAN), -1).mean(-1) for bound in (lower_bound, upper_bound)
        ]

    low, high = expectations(draws)
    assert (low < log_p).all() and (high > log_p).all()
    fewer = log_w.mean(-1) if draws == 2 else expectations(2)[0]
    assert (low > fewer).all()
    if draws == 3:
        assert (high < expectations(2)[1]).all()


def test_orders_of_the_same_probability_leave_no_interval():
    log_w = np.full((5, 3), -700.0)
    np.testing.assert_allclose(lower_bound(log_w), -700)
    np.testing.assert_allclose(upper_bound(log_w), -700)


def test_weights_that_float64_does_not_hold():
    log_w = np.array([[-1500.0], [-1501.0], [-3000.0]])
    psi = [-1501 - np.log(2), -1500 - np.log(2), -1500 + np.log1p(np.exp(-1)) - np.log(2)]
    ratios = np.exp(np.array([-1500, -1501, -3000]) - psi)
    np.testing.assert_allclose(upper_bound(log_w), np.mean(psi + ratios - 1))
    assert upper_bound(np.array([[0.0], [-1000.0]])) == np.inf  # its estimate, not an error
    assert np.isposinf(upper_bound(np.array([[0.0], [-np.inf]])))


def test_first_hitting_draws_from_the_distribution_that_is_bounded():
    """Real samples with blocks of 2, against the mean over orders."""
    rows = 20_000
    process = Process(
        graph=GRAPH,
        noise=NOISE,
        score_fn=score_fn,
        steps=None,
        t_min=T_MIN,
        clamp=Clamp(jnp.zeros((rows, L), jnp.int32), jnp.zeros((rows, L), bool)),
    )
    sampler, keys = FirstHitting(block=2), jax.random.split(jax.random.key(0), rows)
    state = sampler.init(keys, process, jnp.full((rows, L), V - 1))
    for step in range(L):
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        state, _ = sampler.step(step_keys, process, state)
    counts = np.bincount(SPACE.index(np.asarray(state.xt)), minlength=len(SPACE.states))
    assert chisquare(counts[SPACE.clean], exact(2) * rows).pvalue > 1e-3
    assert chisquare(counts[SPACE.clean], exact(4) * rows).pvalue < 1e-3
