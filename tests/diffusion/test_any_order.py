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
from sedd_jax.experiment.config import Config
from sedd_jax.verification.exact.orders import (
    inconsistent_logits,
    log_order_probs,
    logits_model,
    orders_of,
)
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.interval import check_interval_bounds

V, L = 3, 4  # with the mask; as few as have orders to disagree about
GRAPH, NOISE, T_MIN = sedd.graph.absorbing(V - 1), sedd.noise.loglinear(), 1e-3
SPACE = Space(GRAPH, L)
CLEAN = SPACE.states[SPACE.clean]
LOGITS = inconsistent_logits(SPACE, 1.5, seed=0)


def score_fn(xt, sigma):
    return logits_model(SPACE, LOGITS).score({}, xt, sigma)


def by_loops(x0, order, start=()):
    """The probability of the tokens of `order`, drawn one after another."""
    xt, found = np.full(L, V - 1), 1.0
    xt[list(start)] = x0[list(start)]
    for position in order:
        odds = np.exp(LOGITS[SPACE.index(xt), position, : V - 1])
        found *= odds[x0[position]] / odds.sum()
        xt[position] = x0[position]
    return found


def test_the_enumeration_by_loops():
    """And `orders_of`: of 4 positions in blocks of 3 there are 3! orders."""
    log_w = log_order_probs(SPACE, LOGITS, 3)
    orders = orders_of(L, 3)
    assert sorted(orders) == [it for it in itertools.permutations(range(L)) if it[3] == 3]
    wanted = [[by_loops(x0, order) for order in orders] for x0 in CLEAN]
    np.testing.assert_allclose(np.exp(log_w), wanted, rtol=1e-5)
    assert np.exp(log_w).mean(1).sum() == pytest.approx(1, rel=1e-6)


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


def test_both_bounds_are_on_their_side_of_every_sequence():
    """Their exact expectations, over all tuples of orders; with more draws they come closer."""
    section = check_interval_bounds(Space(GRAPH, 3), Config())
    assert all(claim.holds for claim in section.claims), section.claims
    least, most = (section.tables[0].rows[-1][i] for i in (2, 3))
    assert 0 < least < most


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
    p_values = [
        chisquare(counts[SPACE.clean], np.exp(log_order_probs(SPACE, LOGITS, block)).mean(1) * rows)
        for block in (2, 4)
    ]
    assert p_values[0].pvalue > 1e-3 > p_values[1].pvalue
